"""The exact cache of models whose past cannot see their future."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.types import Array, MaskRule, Policy, Progress


@dataclasses.dataclass(frozen=True)
class ExactBlock:
  """Keeps keys and values of every finished block; only the active block is computed.

  Exact where clean blocks never look ahead: BD3-LM (arXiv 2503.09573, 3.2), SDAR, causal models.
  One whole-canvas forward fills the prompt; it also decides the first tokens.
  """

  cached = True
  commits = True
  anchor = True
  settles = False

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Refuses attention rules under which a cached block could still change."""
    if policy.scope == "canvas":
      raise ValueError(
        f"cache 'block' keeps finished blocks for good, but {policy} may write to them again. "
        "Use cache 'none'."
      )
    if isinstance(sees, masks.Causal):
      return
    if not isinstance(sees, masks.BlockCausal):
      raise ValueError(
        f"cache 'block' is exact only for block-causal or causal attention, not {sees}: "
        "finished tokens would have to see later ones. Use cache 'none'."
      )
    if block % sees.block:
      raise ValueError(
        f"cache 'block' needs block={block} to be a multiple of the model's block {sees.block}"
      )

  def refresh_B(self, at: Progress) -> Array:
    return at.fresh_B

  def window_BxL(self, at: Progress) -> Array:
    """The active block; the one before it too where it waits, or alone where it is committed."""
    before_B = jnp.where(at.pending_B, at.block, 0)
    offset_BxL = at.slot_L[None, :] - at.start_B[:, None]
    end_B = jnp.where(at.commits_B, 0, at.block)
    return (offset_BxL >= -before_B[:, None]) & (offset_BxL < end_B[:, None])

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (block, 2 * block)

  def keep_BxL(self, at: Progress) -> Array:
    return at.slot_L[None, :] < at.start_B[:, None]
