"""The backward kernels for Hopper: weights are computed again from the scores and the log-sum-exp.

One walks over the keys of each tile of rows and sums dq; the other walks over the rows of each tile
of keys and sums dk and dv, of all heads of the group, with scores transposed, [keys, rows]. Sums
stay in the accumulators of the matmuls.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.block_attention import gpu_ring
from kernels_pallas.block_attention.gpu_forward import PartSight, scale_of
from kernels_pallas.block_attention.gpu_ring import Ring, across, call, down, product
from kernels_pallas.block_attention.tiles import sees
from kernels_pallas.hopper import ROWS

Array = jax.Array

_PIECE = 8192  # numbers of a piece of a tile: registers hold two tiles of scores beside the sums


def backward(
  sight: PartSight, q: Array, k: Array, v: Array, out: Array, lse: Array, grad: Array
) -> tuple[Array, Array, Array]:
  """Gradients of q [B, K, T, H], of k and v [B, S, K * H]; `out` and `lse` are `forward`'s."""
  delta = (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1)
  # A row that sees nothing: its weights exp2(score - inf) are 0 instead of exp2(-inf + inf).
  lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)
  rows = _rows(sight.q_rows, lse, delta)
  with jax.enable_x64(False):  # else indices are int64
    return _dq(sight, rows, q, k, v, grad), *_dkv(sight, rows, q, k, v, grad)


def _rows(q_rows: Array, lse: Array, delta: Array) -> Array:
  """The bounds and segments of rows, and as the bits of float32 what else is one number a row."""
  batch, tiles, columns, _ = q_rows.shape
  heads = lse.shape[1]
  sums = jax.lax.bitcast_convert_type(jnp.stack([lse, delta], axis=2), jnp.int32)
  sums = sums.reshape(batch, heads, 2, tiles, ROWS).swapaxes(2, 3)
  shared = jnp.broadcast_to(q_rows[:, None], (batch, heads, tiles, columns, ROWS))
  rows = jnp.concatenate([shared, sums], axis=3)
  return rows.reshape(batch * heads, tiles, columns + 2, ROWS)


def _regrouped(x_BxIxCxT: Array, size: int) -> Array:
  """The same columns in tiles of another size."""
  batch, _, columns, _ = x_BxIxCxT.shape
  x_BxCxT = x_BxIxCxT.swapaxes(1, 2).reshape(batch, columns, -1)
  return x_BxCxT.reshape(batch, columns, -1, size).swapaxes(1, 2)


def _float(x: Array) -> Array:
  return jax.lax.bitcast_convert_type(x, jnp.float32)


def _dq(sight: PartSight, rows: Array, q: Array, k: Array, v: Array, grad: Array) -> Array:
  batch, heads, total, dim = q.shape
  workers, columns, k_columns = sight.workers, rows.shape[2], sight.k_rows.shape[2]
  tiles, keys = total // (workers * ROWS), sight.k_rows.shape[3]
  piece = min(keys, _PIECE // dim)
  pieces = keys // piece

  def program(
    entry, count, rows, k_rows, q, k, v, grad, dq, q_here, grad_here, rows_here, arrived, *refs
  ):  # fmt: skip
    ring = Ring(refs)
    worker = jax.lax.axis_index("warpgroup")
    b, head = jax.lax.axis_index("row"), jax.lax.axis_index("head")
    tile = tiles - 1 - jax.lax.axis_index("tile")  # causal masks: the longest first
    whole, some = count[b, tile, 0] * pieces, count[b, tile, 1] * pieces

    @pl.when(worker == workers)
    def _copy():
      plgpu.set_max_registers(40, action="decrease")

      def sources(step):
        at = entry[b, tile, jax.lax.div(step, pieces)] * pieces + jax.lax.rem(step, pieces)
        here = b, pl.ds(at * piece, piece), pl.ds(head * dim, dim)
        return k.at[here], v.at[here], k_rows.at[b, at]

      ring.fill(some, sources)

    @pl.when(worker < workers)
    def _work():
      plgpu.set_max_registers(232, action="increase")
      own, line = tile * workers + worker, b * heads + head
      for x, here in ((q, q_here), (grad, grad_here)):
        at = line, pl.ds(own * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(x.at[at], here.at[worker], arrived.at[worker])
      plgpu.copy_gmem_to_smem(rows.at[line, own], rows_here.at[worker], arrived.at[worker])
      plgpu.barrier_wait(arrived.at[worker])
      shape = ROWS, piece

      def walk(dq_sum):
        def step(masked, n, _):
          turn = 2 * n
          k_piece = ring.wait(turn)
          score = product(q_here.at[worker], plgpu.transpose_ref(k_piece, (1, 0)), shape)
          v_piece = ring.wait(turn + 1)
          d_weight = product(grad_here.at[worker], plgpu.transpose_ref(v_piece, (1, 0)), shape)
          ring.free(turn + 1)
          if masked:
            seen = sees(
              [across(rows_here[worker, c], shape) for c in range(columns - 2)],
              [down(ring.row(turn, d), shape) for d in range(k_columns)],
            )
            score = jnp.where(seen, score, -jnp.inf)
          lse, delta = (_float(rows_here[worker, columns - 2 + i]) for i in range(2))
          weight = jnp.exp2(score * scale_of(dim) - across(lse, shape))
          d_score = weight * (d_weight - across(delta, shape))
          plgpu.wgmma(dq_sum, d_score.astype(jnp.bfloat16), k_piece)
          plgpu.wgmma_wait(0)
          ring.free(turn)

        jax.lax.fori_loop(0, whole, functools.partial(step, False), None)
        jax.lax.fori_loop(whole, some, functools.partial(step, True), None)
        return dq_sum[...]

      dq_sum = pl.run_scoped(walk, plgpu.ACC((ROWS, dim), jnp.float32))
      dq[line, own] = (dq_sum * dim**-0.5).astype(jnp.bfloat16)

  kernel = call(
    program,
    workers,
    {"row": batch, "head": heads, "tile": tiles},
    out_type=jax.ShapeDtypeStruct((batch * heads, tiles * workers, ROWS, dim), q.dtype),
    scratch_types=[
      gpu_ring.buffer(workers, ROWS, dim),
      gpu_ring.buffer(workers, ROWS, dim),
      plgpu.SMEM((workers, columns, ROWS), jnp.int32),
      plgpu.Barrier(num_arrivals=3, num_barriers=workers),
      *gpu_ring.scratch(piece, dim, k_columns, workers),
    ],
  )
  dq = kernel(
    sight.keys_of.entry_BxIxJ,
    sight.keys_of.count_BxIx2,
    rows,
    _regrouped(sight.k_rows, piece),
    q.reshape(batch * heads, total, dim),
    k,
    v,
    grad.reshape(batch * heads, total, dim),
  )
  return dq.reshape(q.shape)


def _dkv(
  sight: PartSight, rows: Array, q: Array, k: Array, v: Array, grad: Array
) -> tuple[Array, Array]:
  batch, heads, total, dim = q.shape
  keys, columns, k_columns = sight.k_rows.shape[3], rows.shape[2], sight.k_rows.shape[2]
  workers, tiles = keys // ROWS, sight.k_rows.shape[1]
  height = sight.workers * ROWS
  piece = min(height, _PIECE // dim)
  pieces = height // piece

  def program(
    entry, count, rows, k_rows, q, k, v, grad, dk, dv, k_here, v_here, rows_here, arrived, *refs
  ):  # fmt: skip
    ring = Ring(refs)
    worker = jax.lax.axis_index("warpgroup")
    b, head, tile = (jax.lax.axis_index(name) for name in ("row", "head", "tile"))
    line = b * heads + head
    whole, some = count[b, tile, 0] * pieces, count[b, tile, 1] * pieces

    @pl.when(worker == workers)
    def _copy():
      plgpu.set_max_registers(40, action="decrease")

      def sources(step):
        at = entry[b, tile, jax.lax.div(step, pieces)] * pieces + jax.lax.rem(step, pieces)
        here = line, pl.ds(at * piece, piece)
        return q.at[here], grad.at[here], rows.at[line, at]

      ring.fill(some, sources)

    @pl.when(worker < workers)
    def _work():
      plgpu.set_max_registers(232, action="increase")
      own = tile * workers + worker
      for x, here in ((k, k_here), (v, v_here)):
        at = b, pl.ds(own * ROWS, ROWS), pl.ds(head * dim, dim)
        plgpu.copy_gmem_to_smem(x.at[at], here.at[worker], arrived.at[worker])
      plgpu.copy_gmem_to_smem(k_rows.at[b, own], rows_here.at[worker], arrived.at[worker])
      plgpu.barrier_wait(arrived.at[worker])
      shape = ROWS, piece

      def walk(dk_sum, dv_sum):
        def step(masked, n, _):
          turn = 2 * n
          q_piece = ring.wait(turn)
          score = product(k_here.at[worker], plgpu.transpose_ref(q_piece, (1, 0)), shape)
          if masked:
            seen = sees(
              [down(ring.row(turn, c), shape) for c in range(columns - 2)],
              [across(rows_here[worker, d], shape) for d in range(k_columns)],
            )
            score = jnp.where(seen, score, -jnp.inf)
          lse, delta = (_float(ring.row(turn, columns - 2 + i)) for i in range(2))
          weight = jnp.exp2(score * scale_of(dim) - down(lse, shape))
          grad_piece = ring.wait(turn + 1)
          d_weight = product(v_here.at[worker], plgpu.transpose_ref(grad_piece, (1, 0)), shape)
          plgpu.wgmma(dv_sum, weight.astype(jnp.bfloat16), grad_piece)
          d_score = weight * (d_weight - down(delta, shape))
          plgpu.wgmma(dk_sum, d_score.astype(jnp.bfloat16), q_piece)
          plgpu.wgmma_wait(0)
          ring.free(turn)
          ring.free(turn + 1)

        jax.lax.fori_loop(0, whole, functools.partial(step, False), None)
        jax.lax.fori_loop(whole, some, functools.partial(step, True), None)
        return dk_sum[...], dv_sum[...]

      acc = plgpu.ACC((ROWS, dim), jnp.float32)
      dk_sum, dv_sum = pl.run_scoped(walk, acc, acc)
      dk[line, own] = (dk_sum * dim**-0.5).astype(jnp.bfloat16)
      dv[line, own] = dv_sum.astype(jnp.bfloat16)

  kernel = call(
    program,
    workers,
    {"row": batch, "head": heads, "tile": tiles},
    out_type=[jax.ShapeDtypeStruct((batch * heads, tiles * workers, ROWS, dim), k.dtype)] * 2,
    scratch_types=[
      gpu_ring.buffer(workers, ROWS, dim),
      gpu_ring.buffer(workers, ROWS, dim),
      plgpu.SMEM((workers, k_columns, ROWS), jnp.int32),
      plgpu.Barrier(num_arrivals=3, num_barriers=workers),
      *gpu_ring.scratch(piece, dim, columns, workers),
    ],
  )
  grads = kernel(
    sight.rows_of.entry_BxIxJ,
    sight.rows_of.count_BxIx2,
    _regrouped(rows, piece),
    _regrouped(sight.k_rows, ROWS),
    q.reshape(batch * heads, total, dim),
    k,
    v,
    grad.reshape(batch * heads, total, dim),
  )
  dk, dv = (x.reshape(batch, heads, -1, dim).swapaxes(1, 2).reshape(k.shape) for x in grads)
  return dk, dv
