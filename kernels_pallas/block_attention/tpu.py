"""Online softmax over the tiles of keys that somebody sees. TPU, by Pallas' Mosaic backend.

Each part is a kernel call of its own, and the results are merged by their log-sum-exp. The window's
own keys are brought into [B, K, S, H], which XLA does while it computes them. Cached keys stay
where and as they are: a tile is read with all its heads and transposed in VMEM.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import shards
from kernels_pallas.block_attention import tiles as tiling
from kernels_pallas.block_attention import tpu_backward, tpu_forward
from kernels_pallas.block_attention.merging import merged
from kernels_pallas.block_attention.spec import RESIDUALS, Heads, Keys, Mask, Part
from kernels_pallas.block_attention.tpu_forward import PartSight

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
  parts: tuple[PartSight, ...]

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
    """See `kernels_pallas.block_attention.block_attention`. Differentiable: one part, none cached.

    On a mesh of several devices each has its rows and heads, see `kernels_pallas.shards`.

    Raises:
      NotImplementedError: data types that the kernels do not serve.
    """
    dtypes = {q_BxWxNxH.dtype, *(x.dtype for part in parts for x in part[:2])}
    if dtypes not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
      names = ", ".join(sorted(map(str, dtypes)))
      raise NotImplementedError(f"block_attention: kernels take float32 or bfloat16, not {names}")
    by_row = jax.tree.map(lambda x: "b" if x.ndim else "", self)
    split_parts = tuple(
      Part("b.t.", "b.t.") if part.layer is None else Part(".b.t.", ".b.t.", "") for part in parts
    )
    split = (by_row, "b.t.", split_parts)
    return shards.run(_attend, split, "b.t.", self, q_BxWxNxH, tuple(parts))


def prepare(
  mask: Mask, keys: Sequence[Keys], heads: Heads, *, tiles: tiling.Tiles | None = None
) -> Sight:
  """See `kernels_pallas.block_attention.prepare`. `tiles`: None: see `tiles.choose`."""
  if mask.dense_BxWxS is not None:
    raise NotImplementedError("the kernels take masks made of ranges, not a dense one")
  window = mask.lo_BxWxR.shape[1]

  def of_part(part: Keys) -> PartSight:
    cached = part.live_BxS is not None
    size = tiles or tiling.choose(window, part.slot_BxS.shape[1], heads, cached=cached)
    q_BxCxW = tiling.pack_queries(mask, size.queries)
    k_BxDxS = tiling.pack_keys(mask, part, size.keys)
    some, whole = tiling.visible_tiles(q_BxCxW, k_BxDxS, size)
    return PartSight(
      q_BxCxW=q_BxCxW,
      k_BxDxS=k_BxDxS,
      keys_of=tiling.table(some, whole),
      queries_of=tiling.table(some.swapaxes(1, 2), whole.swapaxes(1, 2)),
      tiles=size,
      keys=part.slot_BxS.shape[1],
      cached=cached,
    )

  return Sight(tuple(of_part(part) for part in keys))


@jax.custom_vjp
def _attend(sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]) -> Array:
  return _forward(sight, q_BxWxNxH, parts)[0]


def _forward(
  sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]
) -> tuple[Array, tuple[Array, Array]]:
  """The result, and what one part's call gave: [B, K, G, W, H] and its log-sum-exp."""
  batch, window, heads, dim = q_BxWxNxH.shape
  dtype = q_BxWxNxH.dtype if len(parts) == 1 else jnp.float32
  results = []
  for part_sight, part in zip(sight.parts, parts, strict=True):
    q = _grouped(part_sight, q_BxWxNxH, part.k.shape[-2])
    results.append(tpu_forward.forward(part_sight, q, *_laid_out(part_sight, part), dtype))
  kept = results[0]
  outs, lses = ([x[:, :, :, :window] for x in each] for each in zip(*results, strict=True))
  out = merged(outs, lses, q_BxWxNxH.dtype)
  return out.reshape(batch, heads, window, dim).swapaxes(1, 2), kept


def _grouped(sight: PartSight, x_BxWxNxH: Array, kv_heads: int) -> Array:
  """[B, K, G, W, H], with queries up to the end of their last tile."""
  batch, window, heads, dim = x_BxWxNxH.shape
  extra = sight.q_BxCxW.shape[2] - window
  x_BxNxWxH = jnp.pad(x_BxWxNxH, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2)
  return x_BxNxWxH.reshape(batch, kv_heads, heads // kv_heads, window + extra, dim)


def _laid_out(sight: PartSight, part: Part) -> tuple[Array, Array, Array]:
  """Keys and values as the kernels want them, and the layer: [Y, B, S, K, H] if cached."""
  if part.k.shape[-3] != sight.keys:
    raise ValueError(
      f"block_attention: a part of {part.k.shape[-3]} keys, where {sight.keys} were prepared for"
    )
  layer = jnp.zeros(1, jnp.int32)
  if sight.cached:
    if part.layer is None:
      return part.k[None], part.v[None], layer
    return part.k, part.v, jnp.asarray(part.layer, jnp.int32).reshape(1)
  if part.layer is not None:
    raise ValueError("block_attention: a part of all layers is a cached one, and needs `live`")
  extra = sight.k_BxDxS.shape[2] - part.k.shape[1]
  k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2) for x in part[:2])
  return k, v, layer


def _saved(sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]) -> tuple[Array, tuple]:
  if len(parts) > 1 or sight.parts[0].cached:
    raise NotImplementedError(
      "block_attention: the kernels differentiate one part, the window's own keys; "
      'with cached ones use implementation="xla"'
    )
  out, kept = _forward(sight, q_BxWxNxH, parts)
  kept = jax.tree.map(lambda x: checkpoint_name(x, RESIDUALS), kept)
  return out, (sight, q_BxWxNxH, parts, kept)


def _backward(saved: tuple, grad_BxWxNxH: Array) -> tuple[None, Array, tuple[Part]]:
  sight, q_BxWxNxH, (part,), (out, lse) = saved
  (own,) = sight.parts
  batch, window, heads, dim = q_BxWxNxH.shape
  kv_heads = part.k.shape[2]
  q, grad = (_grouped(own, x, kv_heads) for x in (q_BxWxNxH, grad_BxWxNxH))
  k, v, _ = _laid_out(own, part)
  dq, dk, dv = tpu_backward.backward(own, q, k, v, out, lse, grad)
  dq_BxNxWxH = dq[:, :, :, :window].reshape(batch, heads, window, dim)
  keys = part.k.shape[1]
  dk, dv = (x[:, :, :keys].swapaxes(1, 2) for x in (dk, dv))
  return None, dq_BxNxWxH.swapaxes(1, 2), (Part(dk, dv),)


_attend.defvjp(_saved, _backward)
