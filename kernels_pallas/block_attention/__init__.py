"""Attention of a window of queries over its own keys and cached ones; masks are ranges of slots.

What depends on the mask alone is the same in all layers, so it is computed once:

  sight = prepare(mask, [Keys(slot_BxW), Keys(slot_BxS, live_BxS)], heads=32, kv_heads=8)
  out = block_attention(q, [Part(k, v), Part(k_YxBxSxKxH, v_YxBxSxKxH, layer)], sight)  # per layer
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, shards
from kernels_pallas.block_attention import gpu, reference, sequence, tpu, xla
from kernels_pallas.block_attention.spec import RESIDUALS, Heads, Keys, Mask, Part, visible

__all__ = [
  "IMPLEMENTATIONS",
  "RESIDUALS",
  "Keys",
  "Mask",
  "Part",
  "Sight",
  "block_attention",
  "prepare",
  "visible",
]

Array = jax.Array

IMPLEMENTATIONS = {
  "reference": reference.prepare,
  "xla": xla.prepare,
  "tpu": tpu.prepare,
  "gpu": gpu.prepare,
}


class Sight(Protocol):
  """Who sees what, as one implementation wants it: a pytree of arrays, the same for all layers."""

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array: ...


def prepare(
  mask: Mask,
  keys: Sequence[Keys],
  *,
  heads: int,
  kv_heads: int,
  dim: int | None = None,
  dtype: Any = None,
  implementation: str | None = None,
) -> Sight:
  """Which keys of each part the queries see; `block_attention` then runs as `implementation` does.

  Query w sees a live key at slot s iff lo[w, r] <= s < hi[w, r] for some r, the segments (if given)
  agree and `dense` (if given) allows it. Where a mesh splits rows each device has
  its own queries.

  Args:
    mask: `dense` is not served by kernels, which raise NotImplementedError.
    keys: per part, in the order in which `block_attention` is given them.
    heads, kv_heads: of the queries and of the keys, from which kernels choose their tiles.
    dim, dtype: of heads. What a kernel does not serve, the next implementation does; None:
      `block_attention` raises if it turns out so.
    implementation: one of `IMPLEMENTATIONS`; None: the best for this backend.
  """
  _check_mask(mask, keys)
  if kv_heads < 1 or heads % kv_heads:
    raise ValueError(f"block_attention: {kv_heads=} must divide {heads=}")

  of_model = Heads(heads, kv_heads, dim, None if dtype is None else jnp.dtype(dtype))

  def own(mask: Mask, keys: Sequence[Keys]) -> Sight:
    return dispatch.run("block_attention", IMPLEMENTATIONS, implementation, mask, keys, of_model)

  whole = shards.positions(mask.lo_BxWxR.shape[1]) == 1
  return own(mask, keys) if whole else sequence.prepare(own, mask, keys)


def block_attention(q_BxWxNxH: Array, parts: Sequence[Part], sight: Sight) -> Array:
  """softmax(q k / sqrt(H)) v over the keys that each query sees, those of all parts together.

  Query head n reads key head n // (N / K). Softmax and sums in float32, the result in the dtype of
  q. Exactly 0 for a query that sees no key, and so are its gradients. With `live` keys the kernels
  have no gradients (NotImplementedError); they read the layer of `Part.layer` where it is.

  Args:
    q_BxWxNxH, parts: float32 or bfloat16.
  """
  _check_parts(q_BxWxNxH, parts)
  return sight.attend(q_BxWxNxH, parts)


def _check_mask(mask: Mask, keys: Sequence[Keys]) -> None:
  """Raises ValueError where the arrays do not fit together."""
  shape = mask.lo_BxWxR.shape
  if len(shape) != 3 or mask.hi_BxWxR.shape != shape:
    raise ValueError(
      f"block_attention: lo {shape} and hi {mask.hi_BxWxR.shape} must both be [B, W, R]"
    )
  if (mask.q_segment_BxW is None) != (mask.k_segment_BxS is None):
    raise ValueError("block_attention: segments are needed of queries and keys, or of neither")
  if mask.q_segment_BxW is not None and mask.q_segment_BxW.shape != shape[:2]:
    raise ValueError(
      f"block_attention: q_segment {mask.q_segment_BxW.shape} must be {list(shape[:2])}"
    )
  if not keys:
    raise ValueError("block_attention: at least one set of keys is needed")
  for part in keys:
    if part.slot_BxS.ndim != 2 or part.slot_BxS.shape[0] != shape[0]:
      raise ValueError(f"block_attention: slot {part.slot_BxS.shape} must be [{shape[0]}, S]")
    live = part.live_BxS
    if live is not None and (live.shape != part.slot_BxS.shape or live.dtype != jnp.bool_):
      raise ValueError(
        f"block_attention: live {live.dtype}{live.shape} must be bool{part.slot_BxS.shape}"
      )


def _check_parts(q_BxWxNxH: Array, parts: Sequence[Part]) -> None:
  """Raises ValueError where keys and values do not fit the queries."""
  batch, _, heads, dim = q_BxWxNxH.shape
  for part in parts:
    shape = part.k.shape if part.layer is None else part.k.shape[1:]
    if part.v.shape != part.k.shape or len(shape) != 4:
      raise ValueError(
        f"block_attention: k {part.k.shape} and v {part.v.shape} must both be [B, S, K, H], or "
        "[Y, B, S, K, H] with a layer"
      )
    if (shape[0], shape[3]) != (batch, dim) or heads % shape[2]:
      raise ValueError(
        f"block_attention: keys [B, S, K, H] = {shape} do not fit queries {q_BxWxNxH.shape}"
      )
