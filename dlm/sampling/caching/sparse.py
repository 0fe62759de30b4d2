"""Caches that keep a part of the keys: another part in each layer, or in each head."""

import dataclasses

from dlm import masks
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy
from dlm.types import Array, Choice, MaskRule, Progress


@dataclasses.dataclass(frozen=True)
class Sparse(CachePlan):
  """Sparse-dLLM (2508.02558): of the keys around the block keep those that its queries ask for.

  The first forwards of a block are over the whole canvas. The last of them keeps, in each layer,
  the share `ratio` of the keys outside the block: those whose product with the mean of the block's
  queries is largest, by the mean of all heads, each key as good as its better neighbour. From then
  on the block alone is computed, and attends to these and itself. Approximate.

  Args:
    ratio: of the keys outside the block that are kept; 0.5 in the paper.
    delay: forwards of a block before the one that keeps keys; 1 in the paper, as the first has
      nothing but masks to ask with.
  """

  whole_blocks = True
  ratio: float = 0.5
  delay: int = 1

  def __post_init__(self):
    if not 0 <= self.ratio <= 1:
      raise ValueError(f"cache: ratio={self.ratio} must lie in [0, 1]")
    if self.delay < 0:
      raise ValueError(f"cache: delay={self.delay} must not be negative")

  @property
  def choice(self) -> Choice:
    return Choice(self.ratio)

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Refuses models that must know where a key stands to see it or not."""
    if not isinstance(sees, masks.Full):
      raise ValueError(
        f"sparse caches forget where keys stand, so they are for models that see all slots, not "
        f"{sees}"
      )

  def refresh_B(self, at: Progress) -> Array:
    return at.step_B <= self.delay

  def window_BxL(self, at: Progress) -> Array:
    return at.active_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (block,)

  def keep_BxL(self, at: Progress) -> Array:
    """All but the block; with shift also not the query before it, which is computed with it."""
    first_Bx1 = at.start_B[:, None] - at.shift
    inside_BxL = at.slot_L[None, :] < at.start_B[:, None] + at.block
    computed_BxL = (at.slot_L[None, :] >= first_Bx1) & inside_BxL
    return ~computed_BxL & (at.step_B == self.delay)[:, None]


@dataclasses.dataclass(frozen=True)
class HeadSparse(Sparse):
  """dLLM-Serve (2512.17077): as Sparse-dLLM, but every key head keeps keys of its own.

  A key counts for what the most interested of the query heads that share it asks for, and one is
  kept at least. Theirs is the authors' code; the paper calls the ratio retention.
  """

  @property
  def choice(self) -> Choice:
    return Choice(self.ratio, by_head=True, least=1)
