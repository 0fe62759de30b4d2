"""The backward kernels: weights are computed again from the scores and the log-sum-exp.

One kernel walks over the keys of each tile of queries and sums dq; the other walks over the queries
of each tile of keys and sums dk and dv, with tiles of scores transposed, [keys, queries], so that
no product needs a transposed weight.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.block_attention.tiles import sees
from kernels_pallas.block_attention.tpu_forward import (
  PartSight,
  compiler_params,
  dot,
  heads_a_step,
  hidden_to_minus_inf,
  met,
  on_seen_tiles,
  scale_of,
  split_columns,
  split_rows,
)

Array = jax.Array
_TileAt = Callable[..., Array]  # of the grid's indices and the prefetched table


def backward(
  sight: PartSight, q: Array, k: Array, v: Array, out: Array, lse: Array, grad: Array
) -> tuple[Array, Array, Array]:
  """Gradients of q [B, K, G, W, H], of k and v [B, K, S, H]; `out` and `lse` are `forward`'s."""
  delta = (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1)
  # A query that sees nothing: its weights exp2(score - inf) are 0 instead of exp2(-inf + inf).
  lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)
  arrays = (q, sight.q_BxCxW, sight.k_BxDxS, k, v, grad, lse, delta)
  with jax.enable_x64(False):  # with it on, the indices of blocks would be 64 bit
    return _call_dq(sight, *arrays), *_call_dkv(sight, *arrays)


def _specs(
  sight: PartSight, shape: tuple[int, ...], query_tile: _TileAt, key_tile: _TileAt
) -> list[pl.BlockSpec]:
  """Blocks of the arrays, given the maps from grid indices to tiles of queries and of keys."""
  _, heads, group, _, dim = shape
  queries, keys = sight.tiles
  at_once = heads_a_step(heads, group * queries)
  q_spec = pl.BlockSpec(
    (1, at_once, group, queries, dim), lambda *at: (at[0], at[1], 0, query_tile(*at), 0)
  )
  kv_spec = pl.BlockSpec((1, at_once, keys, dim), lambda *at: (at[0], at[1], key_tile(*at), 0))
  sums_spec = pl.BlockSpec(
    (1, at_once, group, queries), lambda *at: (at[0], at[1], 0, query_tile(*at))
  )
  return [
    q_spec,
    pl.BlockSpec((1, sight.q_BxCxW.shape[1], queries), lambda *at: (at[0], 0, query_tile(*at))),
    pl.BlockSpec((1, sight.k_BxDxS.shape[1], keys), lambda *at: (at[0], 0, key_tile(*at))),
    kv_spec,
    kv_spec,
    q_spec,
    sums_spec,
    sums_spec,
  ]


def _call_dq(sight: PartSight, q: Array, *arrays: Array) -> Array:
  batch, heads, group, window, dim = q.shape
  queries, table = sight.tiles.queries, sight.keys_of
  at_once, rows = heads_a_step(heads, group * queries), group * queries
  tiles = window // queries
  specs = _specs(
    sight,
    q.shape,
    lambda b, h, i, *_: i,
    lambda b, h, i, step, entry, count: met(entry, count, b * tiles + i, step),
  )
  return pl.pallas_call(
    functools.partial(_dq_kernel, tiles=tiles, scale=scale_of(dim)),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, heads // at_once, tiles, table.most),
      in_specs=specs,
      out_specs=specs[0],
      scratch_shapes=[
        pltpu.VMEM((at_once, rows, dim), jnp.float32),
        pltpu.VMEM((at_once, rows, 1), jnp.float32),
        pltpu.VMEM((at_once, rows, 1), jnp.float32),
      ],
    ),
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=compiler_params(),
    name="block_attention_dq",
  )(table.entry, table.count, q, *arrays)


def _dq_kernel(
  entry, count, q_ref, q_rows_ref, k_rows_ref, k_ref, v_ref, grad_ref, lse_ref, delta_ref, dq_ref,
  sum_ref, lse_column_ref, delta_column_ref, *, tiles: int, scale: float,
) -> None:  # fmt: skip
  heads, group, queries, dim = q_ref.shape[1:]

  @pl.when(pl.program_id(3) == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)
    for head in range(heads):
      for g in range(group):
        rows = slice(g * queries, (g + 1) * queries)
        lse_column_ref[head, rows] = lse_ref[0, head, g : g + 1].T
        delta_column_ref[head, rows] = delta_ref[0, head, g : g + 1].T

  def add(whole: bool) -> None:
    if not whole:
      seen = sees(split_columns(q_rows_ref[0].T), split_rows(k_rows_ref[0]))
    for head in range(heads):
      q, grad = (x[0, head].reshape(group * queries, dim) for x in (q_ref, grad_ref))
      k = k_ref[0, head]
      score = dot(q, k, (1, 1)) * scale
      if not whole:
        score = hidden_to_minus_inf(score, seen)
      weight = jnp.exp2(score - lse_column_ref[head])
      d_score = weight * (dot(grad, v_ref[0, head], (1, 1)) - delta_column_ref[head])
      sum_ref[head] += dot(d_score.astype(k.dtype), k, (1, 0))

  on_seen_tiles(entry, count, tiles, add)

  @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
  def _():
    dq = sum_ref[...] * dim**-0.5
    dq_ref[0] = dq.reshape(heads, group, queries, dim).astype(dq_ref.dtype)


def _call_dkv(sight: PartSight, q: Array, *arrays: Array) -> tuple[Array, Array]:
  batch, heads, group, _, dim = q.shape
  (queries, keys), table = sight.tiles, sight.queries_of
  at_once = heads_a_step(heads, group * queries)
  k = arrays[2]
  tiles = k.shape[2] // keys
  specs = _specs(
    sight,
    q.shape,
    lambda b, h, j, step, entry, count: met(entry, count, b * tiles + j, step),
    lambda b, h, j, *_: j,
  )
  kv_spec = specs[3]
  dk, dv = pl.pallas_call(
    functools.partial(_dkv_kernel, tiles=tiles, scale=scale_of(dim)),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, heads // at_once, tiles, table.most),
      in_specs=specs,
      out_specs=[kv_spec, kv_spec],
      scratch_shapes=[
        pltpu.VMEM((at_once, keys, dim), jnp.float32),
        pltpu.VMEM((at_once, keys, dim), jnp.float32),
      ],
    ),
    out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
    compiler_params=compiler_params(),
    name="block_attention_dkv",
  )(table.entry, table.count, q, *arrays)
  return dk, dv


def _dkv_kernel(
  entry, count, q_ref, q_rows_ref, k_rows_ref, k_ref, v_ref, grad_ref, lse_ref, delta_ref, dk_ref,
  dv_ref, k_sum_ref, v_sum_ref, *, tiles: int, scale: float,
) -> None:  # fmt: skip
  heads, group, _, dim = q_ref.shape[1:]

  @pl.when(pl.program_id(3) == 0)
  def _():
    k_sum_ref[...] = jnp.zeros_like(k_sum_ref)
    v_sum_ref[...] = jnp.zeros_like(v_sum_ref)

  def add(whole: bool) -> None:
    if not whole:
      seen = sees(split_rows(q_rows_ref[0]), split_columns(k_rows_ref[0].T))
    for head in range(heads):
      k, v = k_ref[0, head], v_ref[0, head]
      for g in range(group):
        q, grad = q_ref[0, head, g], grad_ref[0, head, g]
        score = dot(k, q, (1, 1)) * scale
        if not whole:
          score = jnp.where(seen, score, -jnp.inf)
        weight = jnp.exp2(score - lse_ref[0, head, g : g + 1])
        v_sum_ref[head] += dot(weight.astype(grad.dtype), grad, (1, 0))
        d_score = weight * (dot(v, grad, (1, 1)) - delta_ref[0, head, g : g + 1])
        k_sum_ref[head] += dot(d_score.astype(q.dtype), q, (1, 0))

  on_seen_tiles(entry, count, tiles, add)

  @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
  def _():
    dk_ref[0] = (k_sum_ref[...] * dim**-0.5).astype(dk_ref.dtype)
    dv_ref[0] = v_sum_ref[...].astype(dv_ref.dtype)
