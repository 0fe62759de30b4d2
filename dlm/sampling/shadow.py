"""Written tokens, judged as if they were masked: WINO's shadow block (arXiv 2507.18578).

A model that sees a token says little about whether it would write it. So the active block rides
along a second time, all of it masked and at the same positions. A shadow query sees the canvas but
for its own slot, and the other shadows; the canvas sees no shadow, so its answers are as ever.
"""

from typing import Any

import jax.numpy as jnp

from dlm.sampling.sampler import Sampler
from dlm.types import Array, Mask, ModelOutput, Params


def denoise(
  sampler: Sampler,
  params: Params,
  tokens_BxL: Array,
  open_BxL: Array,
  *,
  start_B: Array,
  length_B: Array,
  slot_BxW: Array,
  mask: Mask,
  time_BxW: None,
  **rows: Any,
) -> ModelOutput:
  """The whole canvas; slots that are written in the active block answer from their shadows.

  `Sampler` has made sure that the model sees all slots and is told no noise level.
  """
  block, (batch, slots) = sampler.block, tokens_BxL.shape
  shadow_BxK = start_B[:, None] + jnp.arange(block)[None, :]
  masks_BxK = jnp.full((batch, block), sampler.mask_id, tokens_BxL.dtype)
  out = sampler.denoise(
    params,
    jnp.concatenate([masks_BxK, tokens_BxL], axis=1),
    slot_BxW=jnp.concatenate([shadow_BxK, slot_BxW], axis=1),
    mask=_mask(shadow_BxK, slots, length_B),
    **rows,
  )
  hidden_BxKxD, hidden_BxLxD = jnp.split(out.head.hidden_BxAxD, [block], axis=1)
  offset_BxL = slot_BxW - start_B[:, None]
  judged_BxL = (offset_BxL >= 0) & (offset_BxL < block) & open_BxL
  judged_BxL &= tokens_BxL != sampler.mask_id
  there_BxLx1 = jnp.clip(offset_BxL, 0, block - 1)[:, :, None]
  shadow_BxLxD = jnp.take_along_axis(hidden_BxKxD, there_BxLx1, axis=1)
  hidden_BxLxD = jnp.where(judged_BxL[:, :, None], shadow_BxLxD, hidden_BxLxD)
  return out.replace(head=out.head.replace(hidden_BxAxD=hidden_BxLxD))


def _mask(shadow_BxK: Array, slots: int, length_B: Array) -> Mask:
  """Keys are the shadows, then the canvas; three ranges a query."""
  batch, block = shadow_BxK.shape
  nothing_BxL = jnp.zeros((batch, slots), shadow_BxK.dtype)
  end_BxL = nothing_BxL + block + length_B[:, None]
  end_BxK, own_BxK = end_BxL[:, :1] + 0 * shadow_BxK, block + shadow_BxK
  shadows_BxK = 0 * shadow_BxK + (shadow_BxK < length_B[:, None]).sum(-1, keepdims=True)
  lo_BxKx3 = jnp.stack([0 * own_BxK, 0 * own_BxK + block, own_BxK + 1], axis=-1)
  hi_BxKx3 = jnp.stack([shadows_BxK, jnp.minimum(own_BxK, end_BxK), end_BxK], axis=-1)
  lo_BxLx3 = jnp.stack([nothing_BxL + block, nothing_BxL, nothing_BxL], axis=-1)
  hi_BxLx3 = jnp.stack([end_BxL, nothing_BxL, nothing_BxL], axis=-1)
  return Mask(
    lo_BxWxR=jnp.concatenate([lo_BxKx3, lo_BxLx3], axis=1),
    hi_BxWxR=jnp.concatenate([hi_BxKx3, hi_BxLx3], axis=1),
  )
