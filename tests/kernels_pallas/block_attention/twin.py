"""Attention in float64 numpy, and a batch that has one mask a row, as the models make them."""

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from kernels_pallas.block_attention import Keys, Mask

L = 24  # slots of a row; [noisy; clean] halves them
SLOT_1xL = jnp.arange(L, dtype=jnp.int32)[None]
SEGMENT_1xL = jnp.array([[1] * 7 + [2] * 10 + [3] * 3 + [0] * 4], jnp.int32)

MASKS = {
  "full": masks.Full()(SLOT_1xL, L),
  "causal": masks.Causal()(SLOT_1xL, L),
  "block_causal": masks.BlockCausal(5)(SLOT_1xL, L),
  "context": masks.BlockCausal(2, context=6)(SLOT_1xL, L),
  "noisy_clean": masks.noisy_clean(1, L // 2, 3),
  "segments": masks.in_segments(masks.Full()(SLOT_1xL, L), SEGMENT_1xL),
  "padding": masks.within(masks.Causal()(SLOT_1xL, L), jnp.array([9])),
  "nothing": masks.within(masks.Full()(SLOT_1xL, L), jnp.array([0])),
}


def one_row_a_mask() -> Mask:
  """All of MASKS as the rows of one batch: a missing range is empty, missing segments are equal."""

  def two(x_1xWxR):
    return jnp.pad(x_1xWxR, ((0, 0), (0, 0), (0, 2 - x_1xWxR.shape[2])))

  rows = MASKS.values()
  ones_1xL = jnp.ones_like(SLOT_1xL)
  segment_BxL = jnp.concatenate(
    [ones_1xL if mask.q_segment_BxW is None else mask.q_segment_BxW for mask in rows]
  )
  return Mask(
    jnp.concatenate([two(mask.lo_BxWxR) for mask in rows]),
    jnp.concatenate([two(mask.hi_BxWxR) for mask in rows]),
    segment_BxL,
    segment_BxL,
  )


def visible(mask: Mask, keys: Keys) -> np.ndarray:
  """Bool [B, W, S], key by key."""
  mask, keys = jax.tree.map(np.asarray, (mask, keys))
  batch, window, _ = mask.lo_BxWxR.shape
  seen = np.zeros((batch, window, keys.slot_BxS.shape[1]), bool)
  for b, w, s in np.ndindex(seen.shape):
    slot = keys.slot_BxS[b, s]
    ranges = zip(mask.lo_BxWxR[b, w], mask.hi_BxWxR[b, w], strict=True)
    seen[b, w, s] = any(lo <= slot < hi for lo, hi in ranges)
    if mask.q_segment_BxW is not None:
      seen[b, w, s] &= mask.q_segment_BxW[b, w] == mask.k_segment_BxS[b, slot]
    if mask.dense_BxWxS is not None:
      seen[b, w, s] &= mask.dense_BxWxS[b, w, slot]
    if keys.live_BxS is not None:
      seen[b, w, s] &= keys.live_BxS[b, s]
  return seen


def attention(q_BxWxNxH, k_BxSxKxH, v_BxSxKxH, seen_BxWxS) -> np.ndarray:
  """Row by row and head by head; 0 where a query sees nothing."""
  q, k, v = (np.asarray(x, np.float64) for x in (q_BxWxNxH, k_BxSxKxH, v_BxSxKxH))
  out = np.zeros(q.shape)
  group = q.shape[2] // k.shape[2]
  for b, w, n in np.ndindex(q.shape[:3]):
    seen_S = seen_BxWxS[b, w]
    if seen_S.any():
      score = k[b, seen_S, n // group] @ q[b, w, n] / np.sqrt(q.shape[3])
      weight = np.exp(score - score.max())
      out[b, w, n] = weight / weight.sum() @ v[b, seen_S, n // group]
  return out
