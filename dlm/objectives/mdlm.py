"""MDLM: Simple and effective masked diffusion language models. arXiv 2406.07524, 3.2-3.4."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import times
from dlm.diffusion.schedules import LOG_LINEAR, LogLinear, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.cross_entropy import cross_entropy, weighted_cross_entropy
from dlm.types import Array, Batch, Denoiser, LossSum, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Mdlm:
  """-alpha'/(1-alpha) times the cross-entropy of masked tokens, over all noisable tokens.

  The mask id gets no probability and tokens that are not masked are known (SUBS): they are not
  asked. One time per row. Padding is neither noised nor seen; the authors do both.

  Args:
    mask_id: id of [MASK].
    schedule: noise schedule.
    times: "stratified" (the authors' "antithetic"), "iid" or "shared_offset".
    min_time: times are drawn from [min_time, 1].
    timesteps: T of the discrete-time bound, log-linear noise only; 0: continuous time.
  """

  mask_id: int
  schedule: MaskSchedule = LOG_LINEAR
  times: str = "stratified"
  min_time: float = 1e-3
  timesteps: int = 0

  def __post_init__(self):
    times.check("Mdlm", self.times)
    streams.check_mask_id("Mdlm", self.mask_id)
    if not 0 <= self.min_time < 1:
      raise ValueError(f"Mdlm: min_time={self.min_time} must lie in [0, 1)")
    if self.timesteps < 0:
      raise ValueError(f"Mdlm: timesteps={self.timesteps} must not be negative (0: continuous)")
    if self.timesteps and not isinstance(self.schedule, LogLinear):
      raise ValueError(
        f"Mdlm: timesteps={self.timesteps} needs the log_linear schedule, not {self.schedule}"
      )

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_time", "stratum" [B] and "u_mask" [B, L]."""
    key_time, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    return times.draw(key_time, rows) | {"u_mask": jax.random.uniform(key_mask, (rows, length))}

  def times_of(self, draws: dict[str, Array]) -> Array:
    """Time of each row, [B] in [min_time, 1]; with T steps one of 1/T, 2/T, ... 1."""
    t_B = times.TIMES[self.times](draws["u_time"], draws["stratum"])
    t_B = (1 - self.min_time) * t_B + self.min_time
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

  def corrupt(self, key: Array, batch: Batch, step: Array) -> Noisy:
    return self.corrupt_with(self.draw(key, batch), batch, step)

  def token_losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> Array:
    """[B, L] in nats; the sum over a row estimates its NELBO."""
    return noisy.weight_BxL * cross_entropy(denoise, params, noisy, (self.mask_id,))

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> LossSum:
    return weighted_cross_entropy(denoise, params, noisy, (self.mask_id,))

  def not_a_likelihood(self) -> str | None:
    """Why the loss is no bound on the negative log-likelihood; None if it is one."""
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"
