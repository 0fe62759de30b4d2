"""The exact cache of models whose past cannot see their future."""

import dataclasses

from dlm import masks
from dlm.types import Array, MaskRule


@dataclasses.dataclass(frozen=True)
class ExactBlock:
  """Keeps keys and values of every finished block; only the active block is computed.

  Exact where clean blocks never look ahead: BD3-LM (arXiv 2503.09573, 3.2), SDAR, causal models.
  One whole-canvas forward fills the prompt; it also decides the first tokens.
  """

  cached = True

  def check(self, sees: MaskRule, block: int) -> None:
    """Refuses attention rules under which a cached block could still change."""
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

  def refresh_B(self, step_B: Array, fresh_B: Array) -> Array:
    return fresh_B

  def write_BxW(self, slot_BxW: Array, start_B: Array) -> Array:
    return slot_BxW < start_B[:, None]
