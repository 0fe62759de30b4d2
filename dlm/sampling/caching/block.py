"""The exact cache of models whose past cannot see their future."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy
from dlm.types import Array, MaskRule, Progress


@dataclasses.dataclass(frozen=True)
class ExactBlock(CachePlan):
  """BD3-LM (2503.09573): keep the keys of finished blocks for good, compute the active one alone.

  Exact where clean blocks never look ahead (3.2): BD3-LM, SDAR, causal models. One whole-canvas
  forward fills the prompt; it also decides the first tokens.

  Args:
    fill: slots of the prompt that one forward caches, for servers and long canvases: the prompt is
      filled part by part, which costs its own length and no forward over the canvas. 0: off.
  """

  fill: int = dataclasses.field(default=0, kw_only=True)

  commits = True
  provisional = True
  whole_blocks = True
  packs = "blocks"

  def __post_init__(self):
    if self.fill < 0:
      raise ValueError(f"cache: fill={self.fill} must not be negative (0: off)")

  @property
  def refreshes(self) -> bool:
    return not self.fill

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Refuses attention rules under which a cached block could still change."""
    if policy.scope == "canvas":
      raise ValueError(
        f"cache 'block' keeps finished blocks for good, but {policy} may write to them again. "
        "Use cache 'none'."
      )
    if self.fill and (self.fill % block or self.fill < 2 * block):
      raise ValueError(
        f"cache 'block' needs fill={self.fill} to be a multiple of block={block}, two at least"
      )
    if isinstance(sees, masks.Causal):
      return
    if self.fill and isinstance(sees, masks.PromptBlocks):
      raise ValueError(
        f"cache 'block': fill={self.fill} would cut the prompt, one block for {sees}"
      )
    if not isinstance(sees, masks.BlockCausal | masks.PromptBlocks):
      raise ValueError(
        f"cache 'block' is exact only for block-causal or causal attention, not {sees}: "
        "finished tokens would have to see later ones. Use cache 'none'."
      )
    if block % sees.block:
      raise ValueError(
        f"cache 'block' needs block={block} to be a multiple of the model's block {sees.block}"
      )

  def refresh_B(self, at: Progress) -> Array:
    """Where more than a block waits: the prompt, or blocks that were clean all along."""
    return jnp.zeros_like(at.commits_B) if self.fill else self._long_B(at)

  def fills_B(self, at: Progress) -> Array | None:
    return self._long_B(at) if self.fill else None

  def cached_to_B(self, at: Progress) -> Array:
    if not self.fill:
      return at.start_B
    return jnp.where(self._long_B(at), jnp.minimum(at.cached_B + self.fill, at.start_B), at.start_B)

  def _long_B(self, at: Progress) -> Array:
    return at.start_B - at.cached_B > at.block

  def window_BxL(self, at: Progress) -> Array:
    """What the policy works on and what waits before it; that alone where it is committed."""
    return (at.slot_L[None, :] >= at.cached_B[:, None]) & self._before_end(at)

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return tuple(sorted({block, 2 * block, self.fill or block}))

  def keep_BxL(self, at: Progress) -> Array:
    """Keys of the active block are kept too; every forward over it brings new ones."""
    return self._before_end(at)

  def _before_end(self, at: Progress) -> Array:
    end_B = jnp.where(at.commits_B, self.cached_to_B(at), at.reach_B)
    return at.slot_L[None, :] < end_B[:, None]


@dataclasses.dataclass(frozen=True)
class SubBlock(ExactBlock):
  """Fast-dLLM v2 (2509.26328): as "block", and compute only the part being written.

  Its `use_block_cache`: the whole block is computed while the first token of the leftmost
  unfinished part is masked, and its keys serve until the next part begins. Approximate within a
  block, exact behind it.

  Args:
    size: slots of a part; the policy must write part after part ("parts").
  """

  size: int = 8
  provisional = False
  whole_blocks = False
  packs = "active"

  def __post_init__(self):
    super().__post_init__()
    if self.size < 1:
      raise ValueError(f"cache: size={self.size} must be at least 1")

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    super().check(sees, block, policy)
    if block % self.size or policy.part != self.size:
      raise ValueError(
        f"cache 'sub_block': size={self.size} must divide block={block} and be the size of policy "
        f"'parts'; {policy}"
      )

  def window_BxL(self, at: Progress) -> Array:
    offset_BxL = at.slot_L[None, :] - at.start_B[:, None]
    masked_BxL = at.masked_BxL & at.active_BxL
    first_B = jnp.argmax(masked_BxL, axis=1) - at.start_B
    part_BxL = (offset_BxL // self.size) == (first_B // self.size)[:, None]
    begins_B = first_B % self.size == 0
    known_B = ~(at.active_BxL & at.inside_BxL & ~at.filled_BxL).any(-1)
    alone_B = known_B & ~begins_B & (at.cached_B == at.start_B)
    return jnp.where(alone_B[:, None], part_BxL & at.active_BxL, super().window_BxL(at))

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return tuple(sorted({self.size, *super().widths(block, slots)}))


@dataclasses.dataclass(frozen=True)
class Text(ExactBlock):
  """DiffusionGemma (google-deepmind/gemma): keep the keys of text, which is read causally.

  As "block", but a canvas that is denoised is never cached: sliding layers have no room for it
  beside the text that it sees.
  """

  provisional = False
  packs = ""

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    if not isinstance(sees, masks.Canvas) or sees.block != block:
      raise ValueError(
        f"cache 'text' is for models that read text causally and denoise a canvas, whose length "
        f"block={block} must be; {sees}"
      )

  def keep_BxL(self, at: Progress) -> Array:
    return at.slot_L[None, :] < at.start_B[:, None]


@dataclasses.dataclass(frozen=True)
class Ahead(ExactBlock):
  """D2F (2508.09192): as "block", and compute all blocks that have begun.

  Finished blocks enter the cache with the next forward over those behind them, and so does the
  prompt. Exact, as unfinished blocks are never cached.
  """

  provisional = False
  refreshes = False

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    if not policy.works_ahead:
      raise ValueError(
        f"cache 'ahead' is for policies that work ahead of their block, not {policy}"
      )
    if self.fill:
      raise ValueError(f"cache 'ahead' caches the prompt in one window, not fill={self.fill}")
    exact = isinstance(sees, masks.Causal)
    if isinstance(sees, masks.BlockCausal | masks.PromptBlocks):
      exact = block % sees.block == 0
    if not exact:
      raise ValueError(
        f"cache 'ahead' needs block-causal attention in blocks that divide {block=}, not {sees}"
      )

  def refresh_B(self, at: Progress) -> Array:
    return jnp.zeros_like(at.commits_B)

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    """Halves of blocks up to three, as blocks ahead end with the row; then steps that grow."""
    found = [block * halves // 2 for halves in (2, 3, 4, 5, 6, 8, 12, 16)]
    while found[-1] < slots:
      found.append(2 * found[-1])
    return tuple(sorted({min(width, slots) for width in found}))

  def keep_BxL(self, at: Progress) -> Array:
    return at.slot_L[None, :] < at.start_B[:, None]
