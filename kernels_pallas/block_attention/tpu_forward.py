"""The forward kernel, and what the backward ones share with it.

All use powers of 2, the unit's own: scores are multiplied by H**-0.5 log2(e), and log-sum-exps are
to base 2. Tiles of scores are [G * queries, keys], so a key tile serves its whole group of heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import precision, vmem
from kernels_pallas.block_attention.tiles import NOWHERE, Tiles, TileTable, sees

Array = jax.Array

_LOWEST = -1e30  # below all scores and finite: exp2(-inf - _LOWEST) is 0, not NaN
_ROWS = 2048  # of all heads that a grid step works on: fewer, and the step's overhead shows


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["q_BxCxW", "k_BxDxS", "keys_of", "queries_of"],
  meta_fields=["tiles", "keys", "cached"],
)
@dataclasses.dataclass(frozen=True)
class PartSight:
  """See `kernels_pallas.block_attention.tiles` for the packed rows and the tables."""

  q_BxCxW: Array
  k_BxDxS: Array
  keys_of: TileTable  # tiles of keys, by tile of queries
  queries_of: TileTable  # and the other way round
  tiles: Tiles
  keys: int  # without those that fill up the last tile
  cached: bool


def scale_of(dim: int) -> float:
  return dim**-0.5 * math.log2(math.e)


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
  """Float32 product over the two axes."""
  return jax.lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=precision.of(a, b),
    preferred_element_type=jnp.float32,
  )


def hidden_to_minus_inf(score: Array, seen: Array) -> Array:
  """`seen` [queries, keys] holds for each of the G heads whose rows are stacked in `score`."""
  stacked = score.reshape(-1, *seen.shape)
  return jnp.where(seen[None], stacked, -jnp.inf).reshape(score.shape)


def split_rows(rows: Array) -> list[Array]:
  return [rows[i : i + 1] for i in range(rows.shape[0])]


def split_columns(columns: Array) -> list[Array]:
  return [columns[:, i : i + 1] for i in range(columns.shape[1])]


def heads_a_step(heads: int, rows: int) -> int:
  """The largest divisor of `heads` with at most 2048 rows of scores; at least one."""
  return max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * rows <= _ROWS))


def forward(
  sight: PartSight, q: Array, k: Array, v: Array, layer: Array, dtype: jnp.dtype
) -> tuple[Array, Array]:
  """Attention to one part: out [B, K, G, W, H] and the base-2 log-sum-exp [B, K, G, W], float32.

  Args:
    q: [B, K, G, W, H].
    k, v: [B, K, S, H], or [Y, B, S, K, H] of which `layer` [1] is read if the part is cached.
  """
  batch, kv_heads, group, window, dim = q.shape
  size, table = sight.tiles, sight.keys_of
  tiles = window // size.queries
  at_once = kv_heads if sight.cached else heads_a_step(kv_heads, group * size.queries)
  rows = group * size.queries

  def key_tile(b, h, i, step, entry, count, layer):
    return met(entry, count, b * tiles + i, step)

  def keys_at(*at):
    b, h, *_, layer = at
    tile = key_tile(*at)
    return (layer[0], b, tile, 0, 0) if sight.cached else (b, h, tile, 0)

  keys_block = (1, 1, size.keys, kv_heads, dim) if sight.cached else (1, at_once, size.keys, dim)
  keys_spec = pl.BlockSpec(keys_block, keys_at)
  q_spec = pl.BlockSpec((1, at_once, group, size.queries, dim), lambda b, h, i, *_: (b, h, 0, i, 0))
  kernel = functools.partial(_kernel, tiles=tiles, scale=scale_of(dim), cached=sight.cached)
  with jax.enable_x64(False):  # with it on, the indices of blocks would be 64 bit
    return pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(batch, kv_heads // at_once, tiles, table.most),
        in_specs=[
          q_spec,
          pl.BlockSpec((1, sight.q_BxCxW.shape[1], size.queries), lambda b, h, i, *_: (b, 0, i)),
          pl.BlockSpec(
            (1, sight.k_BxDxS.shape[1], size.keys), lambda *at: (at[0], 0, key_tile(*at))
          ),
          keys_spec,
          keys_spec,
        ],
        out_specs=[
          q_spec,
          pl.BlockSpec((1, at_once, group, size.queries), lambda b, h, i, *_: (b, h, 0, i)),
        ],
        scratch_shapes=[
          pltpu.VMEM((at_once, rows, dim), jnp.float32),
          pltpu.VMEM((at_once, rows, 1), jnp.float32),
          pltpu.VMEM((at_once, rows, 1), jnp.float32),
        ],
      ),
      out_shape=[
        jax.ShapeDtypeStruct(q.shape, dtype),
        jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32),
      ],
      compiler_params=compiler_params(),
      name="block_attention_cached" if sight.cached else "block_attention",
    )(table.entry, table.count, layer, q, sight.q_BxCxW, sight.k_BxDxS, k, v)


def compiler_params() -> pltpu.CompilerParams:
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
    vmem_limit_bytes=vmem.LIMIT_BYTES,
  )


def met(entry, count, row: Array, step: Array) -> Array:
  """The tile that `row` of a table meets in this step."""
  return jax.lax.div(entry[row * (entry.shape[0] // count.shape[0]) + step], 2)


def on_seen_tiles(entry, count, tiles: int, add: Callable[..., None]) -> None:
  """Calls `add(whole)` in those steps of the last grid axis that have a tile; `whole` is static."""
  row = pl.program_id(0) * tiles + pl.program_id(2)
  step = pl.program_id(3)
  steps = entry.shape[0] // count.shape[0]
  whole = jax.lax.rem(entry[row * steps + step], 2) == 1
  some = step < count[row]
  pl.when(some & whole)(functools.partial(add, whole=True))
  pl.when(some & ~whole)(functools.partial(add, whole=False))


def _kernel(
  entry, count, layer, q_ref, q_rows_ref, k_rows_ref, k_ref, v_ref, out_ref, lse_ref, sum_ref,
  top_ref, total_ref, *, tiles: int, scale: float, cached: bool,
) -> None:  # fmt: skip
  heads, group, queries, dim = q_ref.shape[1:]
  step = pl.program_id(3)

  @pl.when(step == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)
    top_ref[...] = jnp.full_like(top_ref, _LOWEST)
    total_ref[...] = jnp.zeros_like(total_ref)

  def add(whole: bool) -> None:
    k_KxSxH, v_KxSxH = (jnp.swapaxes(x[0, 0], 0, 1) if cached else x[0] for x in (k_ref, v_ref))
    if not whole:
      k_rows = k_rows_ref[0]
      seen = sees(split_columns(q_rows_ref[0].T), split_rows(k_rows))
      live = k_rows[:1].T != NOWHERE
    for head in range(heads):
      q, k, v = q_ref[0, head].reshape(group * queries, dim), k_KxSxH[head], v_KxSxH[head]
      score = dot(q, k, (1, 1)) * scale
      if not whole:
        score = hidden_to_minus_inf(score, seen)
        if cached:  # what is not live may hold anything, and 0 * NaN is NaN
          v = jnp.where(live, v.astype(jnp.float32), 0.0).astype(v.dtype)
      top = jnp.maximum(top_ref[head], score.max(-1, keepdims=True))
      old = jnp.exp2(top_ref[head] - top)
      weight = jnp.exp2(score - top)
      top_ref[head] = top
      total_ref[head] = old * total_ref[head] + weight.sum(-1, keepdims=True)
      sum_ref[head] = old * sum_ref[head] + dot(weight.astype(v.dtype), v, (1, 0))

  on_seen_tiles(entry, count, tiles, add)

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    for head in range(heads):
      total = total_ref[head]
      nothing = total == 0
      out = sum_ref[head] / jnp.where(nothing, 1.0, total)
      out_ref[0, head] = out.reshape(group, queries, dim).astype(out_ref.dtype)
      lse = jnp.where(nothing, -jnp.inf, top_ref[head] + jnp.log2(jnp.where(nothing, 1.0, total)))
      for g, part in enumerate(jnp.split(lse, group)):
        lse_ref[0, head, g : g + 1] = part.T
