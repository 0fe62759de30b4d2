"""d3LLM's cache: blocks enter some forwards after they are complete. arXiv 2601.07568."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.caching.prefix import Prefix
from dlm.types import Array, Progress


@dataclasses.dataclass(frozen=True)
class Matured(CachePlan):
  """d3LLM (2601.07568): keep complete blocks, each `delay` forwards after it is found complete.

  The prompt is kept with the first of them. While complete blocks wait, and every `every` forwards,
  the whole canvas is computed and the keys kept so far are renewed, up to the last block that
  waits; otherwise all that is not cached is. Approximate: kept keys do not see what is written
  behind them until they are renewed. As the authors' code for LLaDA; its version for Dream appends
  keys that a renewal has already brought.

  Args:
    delay: 1 or 2 in the authors' runs.
    every: 0: never.
  """

  delay: int = 1
  every: int = 0

  def __post_init__(self):
    for field in ("delay", "every"):
      if getattr(self, field) < 0:
        raise ValueError(f"matured: {field}={getattr(self, field)} must not be negative")

  def refresh_B(self, at: Progress) -> Array:
    ripe_BxL, waits_BxL = self._blocks(at)
    grows_B = (ripe_BxL & ~at.filled_BxL).any(-1)
    due_B = ~at.filled_BxL.any(-1) | waits_BxL.any(-1)
    if self.every:
      due_B |= (at.turn_B + 1) % self.every == 0
    return ~grows_B & due_B

  def window_BxL(self, at: Progress) -> Array:
    return ~at.filled_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return Prefix().widths(block, slots)

  def keep_BxL(self, at: Progress) -> Array:
    ripe_BxL, waits_BxL = self._blocks(at)
    start_BxL = at.answer_B[:, None] + (self._number(at) - 1) * at.block
    last_B = jnp.where(waits_BxL, start_BxL, 0).max(-1)
    renewed_BxL = at.filled_BxL | (at.slot_L[None, :] < last_B[:, None])
    renewed_BxL &= at.filled_BxL.any(-1)[:, None]  # the first keys are those of a ripe block
    return jnp.where(self.refresh_B(at)[:, None], renewed_BxL, ripe_BxL | at.filled_BxL)

  def _number(self, at: Progress) -> Array:
    """Which block each slot belongs to; 0 is the prompt."""
    offset_BxL = at.slot_L[None, :] - at.answer_B[:, None]
    return jnp.where(offset_BxL < 0, 0, offset_BxL // at.block + 1)

  def _blocks(self, at: Progress) -> tuple[Array, Array]:
    """Bool [B, L]: slots of blocks that are cached or may be now, and of complete ones that wait.

    A block is looked at once all before it are complete and ripe, which is when its delay begins.
    """
    number_BxL = self._number(at)
    end_BxL = at.answer_B[:, None] + number_BxL * at.block - 1
    end_BxL = jnp.clip(end_BxL, 0, at.masked_BxL.shape[1] - 1)

    def up_to_end(x_BxL: Array) -> Array:
      return jnp.take_along_axis(jax.lax.cummax(x_BxL, axis=1), end_BxL, axis=1)

    complete_BxL = (up_to_end(at.masked_BxL.astype(jnp.int32)) == 0) & at.inside_BxL
    found_BxL = up_to_end(at.when_BxL + 1 - number_BxL * self.delay) + number_BxL * self.delay
    ripe_BxL = complete_BxL & (found_BxL + self.delay <= at.turn_B[:, None] + 1)
    return ripe_BxL, complete_BxL & ~ripe_BxL & ~at.filled_BxL
