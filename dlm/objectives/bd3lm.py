"""BD3-LM: Block diffusion. arXiv 2503.09573, 3 and 5."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import times
from dlm.diffusion.schedules import LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.objective import Objective
from dlm.types import Array, Batch, Noisy

FULL_WINDOW = (1e-3, 1.0)


@dataclasses.dataclass(frozen=True)
class Bd3lm(Objective):
  """BD3-LM (2503.09573): denoise each block given the clean text of the blocks before it.

  All blocks in one forward over [noisy; clean]: noisy ones see themselves and clean earlier ones.
  One time per block, stratified over all blocks of the batch. Blocks are cut from the row's first
  slot. A block as long as the row has nothing before it: one stream, half the work.

  Args:
    mask_id: id of [MASK]; it gets no probability.
    block: slots in a block; must divide the length of a row.
    schedule: noise schedule; the authors' log-linear here is p = t.
    window: times are drawn from [lo, hi]. Within a window the weight stays that of the schedule,
      but is 1 if lo > 0.5 (5.2: narrow windows train with less variance, and bound nothing).
    search: every evaluation picks the window in which the losses of blocks vary least, of
      `window_candidates` (5.3), and training goes on with it; `window` is for the first updates
      and for the evaluation itself.
    resample_rounds: up to this many times, blocks whose masked share lies outside the window are
      drawn again, at the same time; 0: off. The authors redraw without end; what is still outside
      after the last round stays. Bounds of 1e-3 and of 1 are not enforced.
    ignore_bos: keep the row's first token clean. It stays in the denominator, as in training.
    times: "stratified" (the authors' "antithetic"), "iid" or "shared_offset".
  """

  mask_id: int
  block: int = dataclasses.field()
  schedule: MaskSchedule = LINEAR
  window: tuple[float, float] = FULL_WINDOW
  search: bool = False
  resample_rounds: int = 0
  ignore_bos: bool = True
  times: str = "stratified"
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    streams.check_mask_id("Bd3lm", self.mask_id)
    times.check("Bd3lm", self.times)
    if self.block < 1:
      raise ValueError(f"Bd3lm: block={self.block} must be at least 1")
    lo, hi = self.window
    if not 0 < lo <= hi <= 1:
      raise ValueError(f"Bd3lm: window={self.window} must hold 0 < lo <= hi <= 1")
    if self.resample_rounds < 0:
      raise ValueError(f"Bd3lm: resample_rounds={self.resample_rounds} must not be negative")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_time", "stratum" [B * blocks], "u_mask" [B, L], "u_resample" [rounds, B, L]."""
    key_time, key_mask, key_resample = jax.random.split(key, 3)
    rows, length = batch.tokens_BxL.shape
    blocks = rows * streams.blocks_of(length, self.block)
    again = (self.resample_rounds, rows, length)
    return times.draw(key_time, blocks) | {
      "u_mask": jax.random.uniform(key_mask, (rows, length)),
      "u_resample": jax.random.uniform(key_resample, again),
    }

  def times_of(self, draws: dict[str, Array], rows: int, window: tuple[float, float]) -> Array:
    """Time of each slot, [B, L], the same within a block."""
    lo, hi = window
    t_n = times.TIMES[self.times](draws["u_time"], draws["stratum"]) * (hi - lo) + lo
    return jnp.repeat(t_n.reshape(rows, -1), self.block, axis=1)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    rows, length = batch.tokens_BxL.shape
    streams.blocks_of(length, self.block)
    window = batch.extra.get("window", self.window)
    t_BxL = self.times_of(draws, rows, window)
    level_BxL = self.schedule.masked(t_BxL)
    noisable_BxL = streams.noisable(batch)
    masked_BxL = draws["u_mask"] <= level_BxL
    masked_BxL = self._resampled(masked_BxL, level_BxL, draws["u_resample"], window)
    masked_BxL &= noisable_BxL
    if self.ignore_bos:
      masked_BxL &= (jnp.arange(length) > 0)[None]
    weight_BxL = jnp.where(window[0] <= 0.5, self.schedule.weight(t_BxL), 1)
    noisy = streams.one_stream(
      batch, masked_BxL, weight_BxL, level_BxL, noisable_BxL.sum(-1), self.mask_id
    )
    if self.block == length:
      return noisy
    return streams.noisy_and_clean(noisy, masks.noisy_clean(rows, length, self.block))

  def _resampled(
    self, masked_BxL: Array, level_BxL: Array, u_RxBxL: Array, window: tuple[float, float]
  ) -> Array:
    """Draws blocks again whose masked share lies outside the window, once for each round."""
    lo, hi = window

    def again(masked_BxL: Array, u_BxL: Array) -> tuple[Array, None]:
      blocks = masked_BxL.reshape(masked_BxL.shape[0], -1, self.block)
      share = blocks.sum(-1) / self.block
      outside = ((share < lo) & (lo != FULL_WINDOW[0])) | ((share > hi) & (hi != FULL_WINDOW[1]))
      outside_BxL = jnp.repeat(outside, self.block, axis=1)
      return jnp.where(outside_BxL, u_BxL <= level_BxL, masked_BxL), None

    return jax.lax.scan(again, masked_BxL, u_RxBxL)[0]

  @property
  def candidates(self) -> tuple[dict[str, Any], ...]:
    return tuple({"window": each} for each in window_candidates(self.block)) if self.search else ()

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def not_a_likelihood(self) -> str | None:
    lo, hi = self.window
    all_masked = self.block == 1 and lo >= 1  # then it is exact
    if not (all_masked or (lo <= FULL_WINDOW[0] and hi >= 1)):
      return f"window={self.window} leaves noise levels out; {FULL_WINDOW} has them all"
    if self.ignore_bos:
      return "ignore_bos counts a first token that it never predicts; False, with BOS not noisable"
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"


# ---------------------------------------------------------------------------------------------
# Search of the window whose loss varies least (5.2-5.3)


def window_candidates(
  block: int,
  *,
  delta: float = 0.05,
  widths: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9),
) -> tuple[tuple[float, float], ...]:
  """The full window, then those of each width from 0 up to 1 in steps of delta.

  A lower bound of 0 becomes 1e-3. Blocks of one token choose between all times and t = 1.
  """
  if not 0 < delta <= 1 or not all(0 < width <= 1 for width in widths):
    raise ValueError(f"{delta=} and {widths=} must lie in (0, 1]")
  if block == 1:
    return (FULL_WINDOW, (1.0, 1.0))
  windows = [FULL_WINDOW]
  for width in widths:
    starts = math.floor((1 - width) / delta + 1e-6) + 1
    windows += [
      (max(i * delta, FULL_WINDOW[0]), min(i * delta + width, 1.0)) for i in range(starts)
    ]
  return tuple(windows)


def spread(loss_BxL: Array, block: int) -> Array:
  """Variance of the mean losses of a batch's blocks: what the search makes least."""
  rows, length = loss_BxL.shape
  return loss_BxL.reshape(rows, streams.blocks_of(length, block), block).mean(-1).var(ddof=1)
