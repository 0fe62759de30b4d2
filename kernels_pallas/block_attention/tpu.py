"""Online softmax over the tiles of keys that somebody sees. TPU, by Pallas' Mosaic backend.

Each part is a kernel call of its own, and the results are merged by their log-sum-exp. The window's
own keys are brought into [B, K, S, H], which XLA does while it computes them. Cached keys stay
where and as they are: a tile is read with all its heads and transposed in VMEM.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas.block_attention import tiles as tiling
from kernels_pallas.block_attention import tpu_backward, tpu_forward
from kernels_pallas.block_attention.parts import (
  check_count,
  merged,
  on_each_device,
  refuse_cached,
)
from kernels_pallas.block_attention.spec import (
  RESIDUALS,
  Heads,
  Keys,
  Mask,
  Part,
  layer_of,
  own_layer,
)
from kernels_pallas.block_attention.tpu_forward import PartSight

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
  parts: tuple[PartSight, ...]

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
    """See `kernels_pallas.block_attention.block_attention`. Differentiable: none cached.

    On a mesh of several devices each has its rows and heads, see `kernels_pallas.shards`.

    Raises:
      NotImplementedError: data types that the kernels do not serve.
    """
    dtypes = {q_BxWxNxH.dtype, *(x.dtype for part in parts for x in part[:2])}
    if dtypes not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
      names = ", ".join(sorted(map(str, dtypes)))
      raise NotImplementedError(f"block_attention: kernels take float32 or bfloat16, not {names}")
    return on_each_device(_attend, self, q_BxWxNxH, parts)


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
  """The result, and the same as [B, K, G, W, H] with its log-sum-exp to base 2."""
  batch, window, heads, dim = q_BxWxNxH.shape
  dtype = q_BxWxNxH.dtype if len(parts) == 1 else jnp.float32
  results = []
  for part_sight, part in zip(sight.parts, parts, strict=True):
    q = _grouped(part_sight, q_BxWxNxH, part.k.shape[-2])
    k, v = _laid_out(part_sight, part)
    results.append(tpu_forward.forward(part_sight, q, k, v, layer_of(part), dtype))
  outs, lses = ([x[:, :, :, :window] for x in each] for each in zip(*results, strict=True))
  kept = merged(outs, lses, q_BxWxNxH.dtype)
  return kept[0].reshape(batch, heads, window, dim).swapaxes(1, 2), kept


def _grouped(sight: PartSight, x_BxWxNxH: Array, kv_heads: int) -> Array:
  """[B, K, G, W, H], with queries up to the end of their last tile."""
  batch, window, heads, dim = x_BxWxNxH.shape
  extra = sight.q_BxCxW.shape[2] - window
  x_BxNxWxH = jnp.pad(x_BxWxNxH, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2)
  return x_BxNxWxH.reshape(batch, kv_heads, heads // kv_heads, window + extra, dim)


def _laid_out(sight: PartSight, part: Part) -> tuple[Array, Array]:
  """Keys and values as the kernels want them: [Y, B, S, K, H] if cached, else [B, K, S, H]."""
  check_count(part, sight.keys)
  if sight.cached:
    return (part.k[None], part.v[None]) if part.layer is None else part[:2]
  part = own_layer(part)
  extra = sight.k_BxDxS.shape[2] - part.k.shape[1]
  k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2) for x in part[:2])
  return k, v


def _saved(sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]) -> tuple[Array, tuple]:
  refuse_cached(sight.parts)
  out, kept = _forward(sight, q_BxWxNxH, parts)
  kept = jax.tree.map(lambda x: checkpoint_name(x, RESIDUALS), kept)
  return out, (sight, q_BxWxNxH, parts, kept)


def _backward(saved: tuple, grad_BxWxNxH: Array) -> tuple[None, Array, tuple[Part, ...]]:
  sight, q_BxWxNxH, parts, (out, lse) = saved
  batch, window, heads, dim = q_BxWxNxH.shape
  dq_total, d_parts = 0.0, []
  for own, part in zip(sight.parts, parts, strict=True):
    q, grad = (_grouped(own, x, part.k.shape[-2]) for x in (q_BxWxNxH, grad_BxWxNxH))
    extra = [(0, 0)] * 3 + [(0, q.shape[3] - window)]
    (k, v), back = jax.vjp(functools.partial(_laid_out, own), part)
    dq, dk, dv = tpu_backward.backward(
      own, q, k, v, jnp.pad(out, [*extra, (0, 0)]), jnp.pad(lse, extra), grad
    )
    dq_total += dq[:, :, :, :window].astype(jnp.float32)
    d_parts.append(back((dk, dv))[0])
  dq_BxNxWxH = dq_total.astype(q_BxWxNxH.dtype).reshape(batch, heads, window, dim)
  return None, dq_BxNxWxH.swapaxes(1, 2), tuple(d_parts)


_attend.defvjp(_saved, _backward)
