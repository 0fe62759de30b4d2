"""A causal model's cache of what is settled, and nothing else."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy
from dlm.types import Array, MaskRule, Progress


@dataclasses.dataclass(frozen=True)
class Rolling(CachePlan):
  """I-DLM (2604.11035): keep the keys of settled tokens, and compute drafts and masks behind them.

  Exact: a causal model's keys do not depend on what follows. Also for DEER's verifier, and plain
  autoregressive decoding (a window of one token). The first forward is over the whole canvas and
  settles one token.
  """

  anchor = False
  holds_drafts = True
  packs = "active"

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Refuses models that look ahead, and policies that do not say what they settle."""
    span = policy.draft_span
    if not isinstance(sees, masks.Causal) or not span:
      raise ValueError(
        f"cache 'rolling' is for causal models and policies that draft, not {sees} with {policy}"
      )
    if block != span:
      raise ValueError(f"cache 'rolling' needs block={block} to be the policy's span {span}")

  def refresh_B(self, at: Progress) -> Array:
    """Where the prompt is not cached, or nothing is settled yet."""
    last = at.masked_BxL.shape[1] - 1
    here_Bx1 = jnp.minimum(at.start_B, last)[:, None]
    empty_B = jnp.take_along_axis(at.masked_BxL, here_Bx1, axis=1)[:, 0]
    return empty_B | (at.cached_B < at.start_B)

  def window_BxL(self, at: Progress) -> Array:
    """All but the last slot, which the one before it predicts."""
    offset_BxL = at.slot_L[None, :] - at.start_B[:, None]
    return (offset_BxL >= 0) & (offset_BxL < at.block - 1)

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (block - 1,)

  def keep_BxL(self, at: Progress) -> Array:
    """All: what is not settled is forgotten after the decision (`dlm.sampling.drafts`)."""
    return jnp.ones_like(at.inside_BxL)
