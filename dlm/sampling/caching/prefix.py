"""Fast-dLLM's approximate caches for bidirectional models. arXiv 2505.22618, 3.2."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import sizes
from dlm.sampling.caching.plan import CachePlan
from dlm.types import Array, Progress

COUNTS = ("windows", "forwards")


@dataclasses.dataclass(frozen=True)
class Prefix(CachePlan):
  """Fast-dLLM, prefix (2505.22618): keep what stands before the active block, compute the rest.

  The first forward of a block is over the whole canvas and fills the cache; nothing is refreshed
  until the next block, unless `every` says so. Approximate: finished tokens no longer see what is
  written behind them.

  Args:
    anchor: with a model whose logits predict the next slot, the query before the block rides along.
      False, as in Fast-dLLM's code for Dream: the forward that fills the cache writes the block's
      first token, sure or not.
    settles: no block ends with the forward that filled the cache: a windowed one always follows,
      as in Fast-dLLM's first code and in dInfer (arXiv 2510.08666), with nothing left to write.
    every: the cache is also filled anew whenever the row's count is a multiple of this; 0: never.
    count: what is counted: "windows", the windowed forwards, as dInfer's plain loop does, or all
      "forwards", as it does with iteration smoothing.
  """

  whole_blocks = True
  fills_inside = True
  packs = "canvas"
  anchor: bool = True
  settles: bool = False
  every: int = 0
  count: str = "windows"

  def __post_init__(self):
    if self.every < 0:
      raise ValueError(f"cache: every={self.every} must not be negative (0: never)")
    if self.count not in COUNTS:
      raise ValueError(f"cache: count={self.count!r} is not one of {', '.join(COUNTS)}")

  def refresh_B(self, at: Progress) -> Array:
    due_B = at.step_B == 0
    if self.every:
      count_B = at.windows_B if self.count == "windows" else at.turn_B
      due_B |= (count_B % self.every == 0) & ~at.renewed_B
    return due_B

  def window_BxL(self, at: Progress) -> Array:
    return at.slot_L[None, :] >= at.start_B[:, None]

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return tuple(sorted({min(block, slots), *sizes.widths(slots, block)}))

  def keep_BxL(self, at: Progress) -> Array:
    return at.slot_L[None, :] < at.start_B[:, None]


@dataclasses.dataclass(frozen=True)
class Dual(Prefix):
  """Fast-dLLM, dual (2505.22618): keep all before and behind the active block, compute it alone."""

  def window_BxL(self, at: Progress) -> Array:
    return at.active_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (block,)

  def keep_BxL(self, at: Progress) -> Array:
    return jnp.ones_like(at.inside_BxL)
