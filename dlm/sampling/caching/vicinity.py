"""dInfer's cache: the block's neighbours stay fresh. arXiv 2510.08666."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.caching.plan import CachePlan
from dlm.types import Array, Progress


@dataclasses.dataclass(frozen=True)
class Vicinity(CachePlan):
  """dInfer (2510.08666): compute the block and its near neighbours, take all else from the cache.

  The cache is filled by the whole canvas when a row enters a block, and a windowed forward always
  follows before the row leaves it. In the row's first block that happens once, after the warm-up.
  Approximate, as "dual" is.

  Args:
    before, after: slots of the window around the block; 16 in dInfer.
    warmup: the row's first forwards that compute everything and keep nothing; 4 in dInfer.
    every: the whole canvas is also due when the row's forwards are a multiple of this, after its
      first block; 0: never.
  """

  before: int = 16
  after: int = 16
  warmup: int = 4
  every: int = 0

  settles = True
  packs = "canvas"

  def __post_init__(self):
    for field in ("before", "after", "warmup", "every"):
      if getattr(self, field) < 0:
        raise ValueError(f"vicinity: {field}={getattr(self, field)} must not be negative")

  def refresh_B(self, at: Progress) -> Array:
    first_B = at.turn_B == self.warmup
    # The authors' code learns which block is cached only one forward after the first fill: if that
    # came in a later block than the first, it fills the cache again.
    due_B = (at.step_B == 0) | (at.turn_B == self.warmup + 2)
    if self.every:
      due_B |= at.turn_B % self.every == 0
    later_B = at.turn_B > at.step_B  # forwards were spent on another block
    due_B &= later_B & (at.turn_B > self.warmup) & ~at.renewed_B
    return first_B | due_B

  def window_BxL(self, at: Progress) -> Array:
    offset_BxL = at.slot_L[None, :] - at.start_B[:, None]
    near_BxL = (offset_BxL >= -self.before) & (offset_BxL < at.block + self.after)
    return near_BxL | (at.turn_B < self.warmup)[:, None]

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    """Without what follows the block, and with it. The warm-up is over whole rows."""
    found = self.before + block, self.before + block + self.after
    return tuple(sorted({min(width, slots) for width in found}))

  def keep_BxL(self, at: Progress) -> Array:
    """Everything: a window's keys are computed anew in every forward that could read them."""
    return jnp.broadcast_to((at.turn_B >= self.warmup)[:, None], at.inside_BxL.shape)
