"""Online softmax over the tiles of keys that somebody sees, for Hopper, by Pallas' Mosaic GPU.

It compiles for an H100 and agrees with the reference in interpret mode, but NO GPU HAS RUN IT YET.
`experiments/device_check.py` tells on one whether it is right, and how fast beside XLA and cuDNN.

As on TPUs each part is a kernel call of its own, merged with others by its log-sum-exp, and cached
keys are read where they are. The rows of a tile are (query, head of the group) pairs, so any number
of heads that share their keys fills the tiles.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas.block_attention import gpu_backward, gpu_forward, tiles
from kernels_pallas.block_attention.gpu_forward import PartSight, Table
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
from kernels_pallas.hopper import PROGRAMS, ROWS

Array = jax.Array

_DIMS = (64, 128)  # multiples of the widest swizzle of which the sums fit into registers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
  parts: tuple[PartSight, ...]

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
    """See `kernels_pallas.block_attention.block_attention`. Differentiable: none cached.

    On a mesh of several devices each has its rows and heads, see `kernels_pallas.shards`.

    Raises:
      NotImplementedError: not bfloat16, or heads of another size than 64 or 128.
    """
    for x in (q_BxWxNxH, *(x for part in parts for x in part[:2])):
      _check(x.shape[-1], x.dtype)
    return on_each_device(_attend, self, q_BxWxNxH, parts)


def prepare(mask: Mask, keys: Sequence[Keys], heads: Heads, *, programs: int = PROGRAMS) -> Sight:
  """See `kernels_pallas.block_attention.prepare`. `programs`: that there should be at least.

  Raises:
    NotImplementedError: a dense mask, heads or a dtype as in `Sight.attend`, or a cache that the
      hardware's copies cannot cut into tiles.
  """
  if mask.dense_BxWxS is not None:
    raise NotImplementedError("the kernels take masks made of ranges, not a dense one")
  _check(heads.dim, heads.dtype)
  batch, window, _ = mask.lo_BxWxR.shape
  group = heads.queries // heads.keys
  workers = 1 if window * group <= ROWS else 2
  row_tiles = -(-window * group // (workers * ROWS))

  def of_rows(x_BxWxC: Array) -> Array:
    """[B, tiles, rows, C]: each query once a head of its group, and the last up to the end."""
    extra = row_tiles * workers * ROWS - window * group
    x_BxTxC = jnp.pad(x_BxWxC.repeat(group, axis=1), ((0, 0), (0, extra), (0, 0)), mode="edge")
    return x_BxTxC.reshape(batch, row_tiles, workers * ROWS, -1)

  q_BxCxW = tiles.pack_queries(mask, 1)
  q_rows = of_rows(q_BxCxW.swapaxes(1, 2)).reshape(batch, row_tiles * workers, ROWS, -1)

  def of_part(part: Keys) -> PartSight:
    count, cached = part.slot_BxS.shape[1], part.live_BxS is not None
    tile = 64 if count < 128 else 128
    k_BxDxS = tiles.pack_keys(mask, part, tile)
    if cached:
      if count % 8 or count < tile:
        raise NotImplementedError(f"{count} cached keys must be a multiple of 8 and at least 64")
      k_BxDxS = _moved_back(k_BxDxS, count, tile)
    some_BxWxJ, whole_BxWxJ = tiles.visible_tiles(q_BxCxW, k_BxDxS, tiles.Tiles(1, tile))
    some, whole = of_rows(some_BxWxJ).any(2), of_rows(whole_BxWxJ).all(2)
    number, without = some.shape[2], batch * heads.keys * row_tiles
    return PartSight(
      q_rows=q_rows.swapaxes(2, 3),
      k_rows=k_BxDxS.reshape(*k_BxDxS.shape[:2], number, tile).swapaxes(1, 2),
      keys_of=_table(some, whole),
      rows_of=_table(some.swapaxes(1, 2), whole.swapaxes(1, 2)),
      workers=workers,
      splits=min(max(programs // without, 1), number) if cached else 1,
      keys=count,
      cached=cached,
    )

  return Sight(tuple(of_part(part) for part in keys))


def _check(dim: int | None, dtype: jnp.dtype | None) -> None:
  if dtype not in (None, jnp.bfloat16):
    raise NotImplementedError(f"block_attention: the kernels take bfloat16, not {dtype}")
  if dim not in (None, *_DIMS):
    raise NotImplementedError(f"block_attention: the kernels take heads of 64 or 128, not of {dim}")


def _moved_back(k_BxDxS: Array, count: int, tile: int) -> Array:
  """With a last tile that ends with the array, so that copies stay inside; no key is seen twice."""
  start = k_BxDxS.shape[2] - tile
  last_BxDxS = k_BxDxS[:, :, count - tile : count]
  last_BxDxS = jnp.where(jnp.arange(count - tile, count) < start, tiles.NOWHERE, last_BxDxS)
  return jnp.concatenate([k_BxDxS[:, :, :start], last_BxDxS], axis=2)


def _table(some_BxIxJ: Array, whole_BxIxJ: Array) -> Table:
  rank = jnp.where(whole_BxIxJ, 0, jnp.where(some_BxIxJ, 1, 2))
  counts = [x.sum(-1, dtype=jnp.int32) for x in (whole_BxIxJ, some_BxIxJ)]
  order_BxIxJ = jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32)
  return Table(order_BxIxJ, jnp.stack(counts, axis=-1))


@jax.custom_vjp
def _attend(sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]) -> Array:
  return _forward(sight, q_BxWxNxH, parts)[0]


def _forward(
  sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]
) -> tuple[Array, tuple[Array, Array]]:
  """The result, and its rows [B, K, T, H] with their log-sum-exps to base 2."""
  alone = sum(part.splits for part in sight.parts) == 1
  dtype = jnp.bfloat16 if alone else jnp.float32
  results = []
  for own, part in zip(sight.parts, parts, strict=True):
    q = _grouped(own, q_BxWxNxH, part.k.shape[-2])
    k, v = _laid_out(own, part)
    results.append(gpu_forward.forward(own, q, k, v, layer_of(part), dtype))
  outs = [out for outs, _ in results for out in outs]
  kept = merged(outs, [lse for _, lses in results for lse in lses], q_BxWxNxH.dtype)
  return _ungrouped(kept[0], q_BxWxNxH.shape), kept


def _grouped(sight: PartSight, x_BxWxNxH: Array, kv_heads: int) -> Array:
  """[B, K, T, H], with rows up to the end of their last tile."""
  batch, window, heads, dim = x_BxWxNxH.shape
  x = x_BxWxNxH.reshape(batch, window, kv_heads, heads // kv_heads, dim).swapaxes(1, 2)
  x_BxKxTxH = x.reshape(batch, kv_heads, -1, dim)
  extra = sight.q_rows.shape[1] * ROWS - x_BxKxTxH.shape[2]
  return jnp.pad(x_BxKxTxH, ((0, 0), (0, 0), (0, extra), (0, 0)))


def _ungrouped(x_BxKxTxH: Array, shape: tuple[int, ...]) -> Array:
  batch, window, heads, dim = shape
  kv_heads = x_BxKxTxH.shape[1]
  x = x_BxKxTxH[:, :, : window * heads // kv_heads]
  return x.reshape(batch, kv_heads, window, -1, dim).swapaxes(1, 2).reshape(shape)


def _laid_out(sight: PartSight, part: Part) -> tuple[Array, Array]:
  """Keys and values [Y * B, S, K * H], where they are if cached."""
  check_count(part, sight.keys)
  if not sight.cached:
    part = own_layer(part)
  k, v = (x.reshape(-1, sight.keys, x.shape[-2] * x.shape[-1]) for x in part[:2])
  if not sight.cached:
    extra = -sight.keys % sight.k_rows.shape[3]
    k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0))) for x in (k, v))
  return k, v


def _saved(sight: Sight, q_BxWxNxH: Array, parts: tuple[Part, ...]) -> tuple[Array, tuple]:
  refuse_cached(sight.parts)
  result, kept = _forward(sight, q_BxWxNxH, parts)
  kept = jax.tree.map(lambda x: checkpoint_name(x, RESIDUALS), kept)
  return result, (sight, q_BxWxNxH, parts, kept)


def _backward(saved: tuple, grad_BxWxNxH: Array) -> tuple[None, Array, tuple[Part, ...]]:
  sight, q_BxWxNxH, parts, (out, lse) = saved
  dq, d_parts = 0.0, []
  for own, part in zip(sight.parts, parts, strict=True):
    q, grad = (_grouped(own, x, part.k.shape[-2]) for x in (q_BxWxNxH, grad_BxWxNxH))
    (k, v), back = jax.vjp(functools.partial(_laid_out, own), part)
    dq_part, dk, dv = gpu_backward.backward(own, q, k, v, out, lse, grad)
    dq += dq_part.astype(jnp.float32)
    d_parts.append(back((dk, dv))[0])
  return None, _ungrouped(dq.astype(q_BxWxNxH.dtype), q_BxWxNxH.shape), tuple(d_parts)


_attend.defvjp(_saved, _backward)
