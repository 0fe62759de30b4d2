"""MDLM: Simple and effective masked diffusion language models. arXiv 2406.07524, 3.2-3.4."""

import dataclasses

import jax.numpy as jnp

from dlm.diffusion.schedules import LOG_LINEAR, LogLinear, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.row import RowTraining
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class Mdlm(RowTraining):
  """MDLM (2406.07524): predict masked tokens, weighed so that the loss bounds the likelihood.

  -alpha'/(1-alpha) times the cross-entropy of masked tokens, over all noisable tokens.
  The mask id gets no probability and tokens that are not masked are known (SUBS): they are not
  asked. One time per row. Padding is neither noised nor seen; the authors do both.

  Args:
    schedule: noise schedule.
    times: the authors' "antithetic" is "stratified".
    min_time: times are drawn from [min_time, 1].
    timesteps: T of the discrete-time bound, log-linear noise only; 0: continuous time.
  """

  times: str = "stratified"
  schedule: MaskSchedule = LOG_LINEAR
  min_time: float = 1e-3
  timesteps: int = 0
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.min_time < 1:
      raise ValueError(f"Mdlm: min_time={self.min_time} must lie in [0, 1)")
    if self.timesteps < 0:
      raise ValueError(f"Mdlm: timesteps={self.timesteps} must not be negative (0: continuous)")
    if self.timesteps and not isinstance(self.schedule, LogLinear):
      raise ValueError(
        f"Mdlm: timesteps={self.timesteps} needs the log_linear schedule, not {self.schedule}"
      )

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def times_of(self, draws: dict[str, Array]) -> Array:
    """Time of each row, [B] in [min_time, 1]; with T steps one of 1/T, 2/T, ... 1."""
    t_B = (1 - self.min_time) * super().times_of(draws) + self.min_time
    if self.timesteps:
      return jnp.floor(t_B * self.timesteps) / self.timesteps + 1 / self.timesteps
    return t_B

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_B = self.times_of(draws)
    weight_B = self.schedule.weight(t_B)
    if self.timesteps:
      # T (alpha_s - alpha_t) / (1 - alpha_t) is 1/t on the grid; the authors keep it off t = 1.
      weight_B = 1 / jnp.minimum(t_B, 1 - 1e-4)
    level_B = self.schedule.masked(t_B)
    return streams.noisy_rows(batch, draws["u_mask"], level_B, weight_B, self.mask_id)

  def not_a_likelihood(self) -> str | None:
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"
