"""What a cache plan is: when to run the whole canvas, what to run else, whose keys to keep."""

import abc
import dataclasses
from typing import ClassVar

from dlm.sampling.policy import Policy
from dlm.types import Array, Choice, MaskRule, Progress


@dataclasses.dataclass(frozen=True)
class CachePlan(abc.ABC):
  """One paper's cache. The flags here are those of a plain one, which keeps what it says it keeps.

  Attributes:
    cached: False: there is no cache, every forward is the whole canvas.
    refreshes: `refresh_B` may ask for the whole canvas; False: every forward is over a window.
    commits: finished blocks enter the cache by a forward after their last decision.
    provisional: keys of the active block are kept as its last forward computed them.
    anchor: with shift: the query before a window rides along, to predict its first slot.
    holds_drafts: it keeps the keys of drafts until they are settled: for policies that draft.
    whole_blocks: its windows are blocks of the sampler in a row, from the start of one.
    fills_inside: `on_eos` "fill" acts within a block, not after the forward that opens it.
    settles: a row never leaves its block right after a whole-canvas forward.
    packs: what it may keep in 2 or 4 bits: "blocks", what is cached for good, all before
      `cached_to_B`; "active", that, and the active block's keys are read as they are; a "canvas",
      at forwards over it alone; "": nothing, it keeps slots in any order.
    choice: of what `keep_BxL` offers at a forward over the whole canvas each layer keeps a part.
  """

  cached: ClassVar[bool] = True
  refreshes: ClassVar[bool] = True
  commits: ClassVar[bool] = False
  provisional: ClassVar[bool] = False
  anchor: ClassVar[bool] = True
  holds_drafts: ClassVar[bool] = False
  whole_blocks: ClassVar[bool] = False
  fills_inside: ClassVar[bool] = False
  settles: ClassVar[bool] = False
  packs: ClassVar[str] = ""
  choice: ClassVar[Choice | None] = None

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:  # noqa: B027
    """Raises ValueError where the plan would be wrong, with the reason. A plain one fits all."""

  @abc.abstractmethod
  def refresh_B(self, at: Progress) -> Array:
    """Rows whose next forward must be the whole canvas."""

  def fills_B(self, at: Progress) -> Array | None:
    """Rows whose next forward caches a part of the prompt and decides nothing; None: never any."""
    return None

  def cached_to_B(self, at: Progress) -> Array:
    """Slots before this are cached for good after the next forward."""
    return at.start_B

  @abc.abstractmethod
  def window_BxL(self, at: Progress) -> Array:
    """Bool: slots that any other forward computes; attention finds the rest in the cache."""

  @abc.abstractmethod
  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    """Sizes a window is padded to, ascending: each is compiled, or fewer (`sizes.fewer`)."""

  @abc.abstractmethod
  def keep_BxL(self, at: Progress) -> Array:
    """Bool: slots whose keys enter the cache if this forward computes them."""
