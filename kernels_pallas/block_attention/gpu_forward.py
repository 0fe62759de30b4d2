"""The forward kernel for Hopper, prefill and decoding alike.

The query heads of a group are rows of one tile, so a tile of keys is read once for all of them.
Where the rows make few programs, the tiles of keys are split among several, and XLA merges.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.block_attention import gpu_ring
from kernels_pallas.block_attention.gpu_ring import Ring, across, call, down, product
from kernels_pallas.block_attention.tiles import NOWHERE, sees
from kernels_pallas.hopper import ROWS

Array = jax.Array

_LOWEST = -1e30  # below all scores and finite: exp2(-inf - _LOWEST) is 0, not NaN


class Table(NamedTuple):
  """The tiles j that tile i meets: first those that all of its rows see entirely, then others."""

  entry_BxIxJ: Array  # int32
  count_BxIx2: Array  # int32: of the first kind, and of both


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["q_rows", "k_rows", "keys_of", "rows_of"],
  meta_fields=["workers", "splits", "keys", "cached"],
)
@dataclasses.dataclass(frozen=True)
class PartSight:
  """Rows are (query, head of its group) pairs; I tiles of 64 for each worker, and J of keys."""

  q_rows: Array  # int32 [B, I * workers, C, 64]: what `tiles.pack_queries` says
  k_rows: Array  # int32 [B, J, D, 64 or 128]: and `tiles.pack_keys`
  keys_of: Table  # tiles of keys, by tile of rows
  rows_of: Table  # and the other way round
  workers: int  # of a program, each with 64 rows of its own
  splits: int  # programs that share the keys of a tile of rows
  keys: int  # without those that fill up the last tile
  cached: bool


def scale_of(dim: int) -> float:
  return dim**-0.5 * math.log2(math.e)


def forward(
  sight: PartSight, q: Array, k: Array, v: Array, layer: Array, dtype: jnp.dtype
) -> tuple[Array, Array]:
  """Attention to one part: out [P, B, K, T, H], log-sum-exp to base 2 [P, B, K, T].

  Args:
    q: bfloat16 [B, K, T, H], T rows up to the end of the last tile.
    k, v: [Y * B, S, K * H] of which layer [1] is read.
  """
  batch, heads, total, dim = q.shape
  workers, columns = sight.workers, sight.q_rows.shape[2]
  tiles = sight.q_rows.shape[1] // workers
  k_columns, keys = sight.k_rows.shape[2:]
  splits, cached = sight.splits, sight.cached
  slots = k.shape[1]

  def program(
    entry, count, q_rows, k_rows, layer, q, k, v, out, lse, q_here, rows_here, arrived, cleaned,
    *refs,
  ):  # fmt: skip
    ring = Ring(refs)
    worker = jax.lax.axis_index("warpgroup")
    b, head, split = (jax.lax.axis_index(name) for name in ("row", "head", "split"))
    tile = tiles - 1 - jax.lax.axis_index("tile")  # causal masks: the longest first
    whole, some = count[b, tile, 0], count[b, tile, 1]
    each = jax.lax.div(some + splits - 1, splits)
    first = jnp.minimum(split * each, some)
    end = jnp.minimum(first + each, some)

    @pl.when(worker == workers)
    def _copy():
      plgpu.set_max_registers(40, action="decrease")
      row = layer[0] * batch + b if cached else b

      def sources(step):
        j = entry[b, tile, first + step]
        start = jnp.minimum(j * keys, slots - keys)
        at = row, pl.ds(start, keys), pl.ds(head * dim, dim)
        return k.at[at], v.at[at], k_rows.at[b, j]

      ring.fill(end - first, sources)

    @pl.when(worker < workers)
    def _work():
      plgpu.set_max_registers(232, action="increase")
      own = tile * workers + worker
      rows = pl.ds(own * ROWS, ROWS)
      plgpu.copy_gmem_to_smem(q.at[b * heads + head, rows], q_here.at[worker], arrived.at[worker])
      plgpu.copy_gmem_to_smem(q_rows.at[b, own], rows_here.at[worker], arrived.at[worker])
      plgpu.barrier_wait(arrived.at[worker])

      def step(masked, n, carry):
        acc, top, sum_ = carry
        turn = 2 * (n - first)
        k_tile = ring.wait(turn)
        score = product(q_here.at[worker], plgpu.transpose_ref(k_tile, (1, 0)), (ROWS, keys))
        if masked:
          seen = sees(
            [across(rows_here[worker, c], score.shape) for c in range(columns)],
            [down(ring.row(turn, d), score.shape) for d in range(k_columns)],
          )
          score = jnp.where(seen, score, -jnp.inf)
        if not (masked and cached):
          ring.free(turn)
        best = jnp.maximum(top, score.max(1) * scale_of(dim))
        old = jnp.exp2(top - best)
        weight = jnp.exp2(score * scale_of(dim) - across(best, score.shape))
        sum_ = sum_ * old + weight.sum(1)
        weight = weight.astype(jnp.bfloat16)
        v_tile = ring.wait(turn + 1)
        if masked and cached:
          _clean(ring.row(turn, 0), v_tile, worker, cleaned)
          ring.free(turn)
        here = product(weight, v_tile, (ROWS, dim))
        ring.free(turn + 1)
        return acc * across(old, acc.shape) + here, best, sum_

      carry = (
        jnp.zeros((ROWS, dim), jnp.float32),
        jnp.full((ROWS,), _LOWEST, jnp.float32),
        jnp.zeros((ROWS,), jnp.float32),
      )
      split_at = jnp.clip(whole, first, end)
      carry = jax.lax.fori_loop(first, split_at, functools.partial(step, False), carry)
      acc, top, sum_ = jax.lax.fori_loop(split_at, end, functools.partial(step, True), carry)
      nothing = sum_ == 0
      sum_ = jnp.where(nothing, 1.0, sum_)
      at = (split * batch + b) * heads + head, own
      out[at] = (acc * across(1.0 / sum_, acc.shape)).astype(dtype)
      lse[at] = jnp.where(nothing, -jnp.inf, top + jnp.log(sum_) * math.log2(math.e))

  lead = splits * batch * heads, tiles * workers, ROWS
  kernel = call(
    program,
    workers,
    {"row": batch, "head": heads, "split": splits, "tile": tiles},
    out_type=[
      jax.ShapeDtypeStruct((*lead, dim), dtype),
      jax.ShapeDtypeStruct(lead, jnp.float32),
    ],
    scratch_types=[
      gpu_ring.buffer(workers, ROWS, dim),
      plgpu.SMEM((workers, columns, ROWS), jnp.int32),
      plgpu.Barrier(num_arrivals=2, num_barriers=workers),
      plgpu.Barrier(num_arrivals=workers),
      *gpu_ring.scratch(keys, dim, k_columns, workers),
    ],
  )
  with jax.enable_x64(False):  # else indices are int64
    out, lse = kernel(
      sight.keys_of.entry_BxIxJ,
      sight.keys_of.count_BxIx2,
      sight.q_rows,
      sight.k_rows,
      layer,
      q.reshape(batch * heads, total, dim),
      k,
      v,
    )
  lead = splits, batch, heads, total
  return out.reshape(*lead, dim), lse.reshape(lead)


def _clean(slot_S: Array, v_tile: Any, worker: Array, cleaned: Any) -> None:
  """Zeros for values that are not live: they may hold anything, and 0 * NaN is NaN."""

  @pl.when(worker == 0)
  def _():
    live = across(slot_S, v_tile.shape) != NOWHERE
    v_tile[...] = jnp.where(live, v_tile[...], 0)
    plgpu.commit_smem()

  plgpu.barrier_arrive(cleaned)
  plgpu.barrier_wait(cleaned)
