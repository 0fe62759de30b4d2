"""MD4: masked diffusion with a schedule of one's choice. arXiv 2406.04329, 3; its code."""

import dataclasses
import math

import jax.numpy as jnp

from dlm.diffusion import uniform
from dlm.diffusion.schedules import MD4_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.row import RowTraining
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Md4(RowTraining):
  """MD4 (2406.04329): predict masked tokens, weighed so that the whole loss bounds the likelihood.

  As `Mdlm`, with its own curves of noise, times on an even grid, and what MDLM leaves out: at t = 0
  the schedule masks a few tokens still, and these cost log V each, a guess among all ids.
  The mask id gets no probability. Loss over all noisable tokens.

  Args:
    times: the authors' "antithetic" is "shared_offset".
    vocab: ids below it, but for the mask id, are guessed at t = 0.
    schedule: noise schedule; theirs are "md4_linear", "md4_cosine" and "md4_poly".
    timesteps: T of the discrete-time bound; 0: continuous time.
  """

  times: str = "shared_offset"
  vocab: int = dataclasses.field(kw_only=True)
  schedule: MaskSchedule = MD4_LINEAR
  timesteps: int = 0
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 2:
      raise ValueError(f"Md4: vocab={self.vocab} must be at least 2")
    if self.timesteps < 0:
      raise ValueError(f"Md4: timesteps={self.timesteps} must not be negative (0: continuous)")

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Adds to `extra`: "guess_BxL", what is paid for the tokens that are masked at t = 0."""
    del step
    t_B = self.times_of(draws)
    if self.timesteps:
      t_B = (jnp.floor(t_B * self.timesteps) + 1) / self.timesteps
      level_B, before_B = (self.schedule.masked(t) for t in (t_B, t_B - 1 / self.timesteps))
      weight_B = self.timesteps * (level_B - before_B) / level_B
    else:
      level_B, weight_B = self.schedule.masked(t_B), self.schedule.weight(t_B)
    noisy = streams.noisy_rows(batch, draws["u_mask"], level_B, weight_B, self.mask_id)
    guess = self.schedule.masked(jnp.float32(0)) * math.log(
      uniform.states(self.vocab, self.mask_id)
    )
    return noisy.replace(extra={"guess_BxL": guess * streams.noisable(batch)})

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    loss_BxL, ce_BxL, aux = super().losses(denoise, params, noisy)
    return loss_BxL + noisy.extra["guess_BxL"], ce_BxL, aux

  def not_a_likelihood(self) -> str | None:
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"
