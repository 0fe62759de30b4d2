"""The same statistics in one kernel for Hopper: logits are in registers and nowhere else.

A program holds a block of rows and walks over its part of the vocabulary. One of its warpgroups
copies what is multiplied next into a ring in shared memory; the other two multiply, and add each
tile of logits to the state of their rows. XLA merges the states of all parts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas import vocabulary
from kernels_pallas.token_stats import gpu_fold
from kernels_pallas.token_stats import tile as tiles
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats
from kernels_pallas.vocabulary import Held

Array = jax.Array

_ROWS = 64  # of a warpgroup's matmul
_STEP = 64  # of D that a step multiplies: 128 bytes, the widest swizzle
_WORKERS = 2  # warpgroups that multiply; one more copies
_MAX_TILE = 256  # ids of a warpgroup's matmul: its logits take 128 registers of each thread
_LANES = 32  # ids that are added at once: what is computed of more would not fit beside the logits
_PROGRAMS = 132  # multiprocessors of an H100. With another number the kernel is slower, not wrong
_RING_BYTES = 216 << 10  # of the 227 KiB that a program may have
_BLOCKS_AT_ONCE = 16  # 2048 rows of D = 4096 are 16 MiB, and the L2 cache has 50
_MAX_GATHERED = 4  # ids a row; each costs some instructions a logit


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How the logits are cut into programs, and those into tiles."""

  by_ids: bool  # the workers have the same rows and different ids; else the other way round
  groups: int  # of blocks of rows, one after the other
  blocks: int  # of rows in a group, side by side
  splits: int  # of the vocabulary
  walk: int  # tiles of a program
  tile: int  # ids of one worker
  slots: int  # of the ring, at least 2

  @property
  def block_rows(self) -> int:
    return _ROWS if self.by_ids else _ROWS * _WORKERS

  @property
  def block_ids(self) -> int:
    return self.tile * _WORKERS if self.by_ids else self.tile

  @property
  def rows(self) -> int:
    """With those that fill the last block."""
    return self.groups * self.blocks * self.block_rows

  @property
  def parts(self) -> int:
    """Of the vocabulary, each with a state of its own."""
    return self.splits * (_WORKERS if self.by_ids else 1)


def tiling_for(
  rows: int, vocab: int, *, programs: int = _PROGRAMS, max_tile: int = _MAX_TILE
) -> Tiling:
  """All programs get equally many tiles, as wide as that allows.

  Up to 64 rows, reading the unembedding is what takes time. It is read once, and since each tile
  reads the rows again, two workers' ids side by side keep those an eighth of the traffic. With more
  rows the matmul takes the time, and 128 rows by 256 ids are what registers hold. Blocks of rows at
  the same split read the same ids from L2 as long as they run together, hence the groups.
  """
  by_ids = rows <= _ROWS
  blocks = pl.cdiv(rows, _ROWS if by_ids else _ROWS * _WORKERS)
  groups = pl.cdiv(blocks, _BLOCKS_AT_ONCE)
  blocks = pl.cdiv(blocks, groups)
  splits = max(1, programs // blocks)
  parts = splits * (_WORKERS if by_ids else 1)
  walk = pl.cdiv(vocab, parts * max_tile)
  tile = 8 * pl.cdiv(vocab, parts * walk * 8)
  side_by_side = _ROWS + _WORKERS * tile if by_ids else _ROWS * _WORKERS + tile
  slots = _RING_BYTES // (side_by_side * _STEP * 2)
  return Tiling(by_ids, groups, blocks, splits, walk, tile, slots)


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  inputs: Inputs,
  *,
  held: Held,
  soft_cap: float | None,
  tiling: Tiling | None = None,
) -> TokenStats:
  """See `kernels_pallas.token_stats.token_stats`. `tiling`: how to cut it (None: see `tiling_for`).

  Raises:
    NotImplementedError: not bfloat16, sizes that the hardware's copies cannot cut, or a spec with
      top-k, top-p, mean embeddings, many gathered ids or a temperature per row.
  """
  rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
  tiling = tiling or tiling_for(rows, vocab)
  if spec.per_row:
    raise NotImplementedError("the kernel knows one temperature for all rows")
  columns = tiles.asked_of_one_pass(spec, inputs, held.total)
  _check(hidden_RxD, unembed_VxD, tiling, len(columns.gather_J))
  first_R = jnp.full(rows, held.first, jnp.int32)
  asked = first_R, jax.tree.map(lambda x_Rx1: x_Rx1[:, 0], columns)
  fallback = vocabulary.first_allowed(held.total, spec.forbidden)

  def padded(x_Rx: Array) -> Array:
    return jnp.pad(x_Rx, [(0, tiling.rows - rows)] + [(0, 0)] * (x_Rx.ndim - 1))

  def empty() -> tiles.State:
    lowest_R = jnp.full(_ROWS, -jnp.inf, jnp.float32)
    return tiles.empty(lowest_R, fallback, spec, len(columns.gather_J))

  def add(state: tiles.State, z_RxT: Array, offset_RxT: Array, begin: Array, asked: Any):
    """With logits of ids `first + offset`; those before `begin` were in the tile before."""
    first_R, columns = asked
    if soft_cap is not None:
      z_RxT = soft_cap * jnp.tanh(z_RxT / soft_cap)
    if columns.divide_Rx1 is not None:
      z_RxT /= jax.lax.broadcast_in_dim(columns.divide_Rx1, z_RxT.shape, (0,))
    z_RxT = jnp.where(offset_RxT >= begin, z_RxT, -jnp.inf)
    ids_RxT = offset_RxT + jax.lax.broadcast_in_dim(first_R, offset_RxT.shape, (0,))
    return gpu_fold.add(state, z_RxT, ids_RxT, columns, spec)

  asked = jax.tree.map(padded, asked)
  parts = _walk(tiling, padded(hidden_RxD), unembed_VxD, asked, empty, add)
  state = gpu_fold.merge(jax.tree.map(lambda x_PxR: x_PxR[:, :rows], parts))
  return tiles.result(vocabulary.of_all(tiles.merge, state, held))


def _check(hidden_RxD: Array, unembed_VxD: Array, tiling: Tiling, gathered: int) -> None:
  vocab, width = unembed_VxD.shape
  if hidden_RxD.dtype != jnp.bfloat16 or unembed_VxD.dtype != jnp.bfloat16:
    raise NotImplementedError(
      f"hidden and unembed must be bfloat16, not {hidden_RxD.dtype} and {unembed_VxD.dtype}"
    )
  if width % _STEP:
    raise NotImplementedError(f"the width, {width}, must be a multiple of {_STEP}")
  if vocab % 8 or vocab < tiling.block_ids:
    raise NotImplementedError(
      f"the vocabulary, {vocab}, must be a multiple of 8 and at least one tile, {tiling.block_ids}"
    )
  if gathered > _MAX_GATHERED:
    raise NotImplementedError(f"{gathered} gathered ids a row are more than {_MAX_GATHERED}")


def _walk(
  tiling: Tiling,
  hidden_RxD: Array,
  unembed_VxD: Array,
  asked: Any,
  empty: Callable[[], tiles.State],
  add: Callable[..., tiles.State],
) -> tiles.State:
  """The states of all parts, [P, R]. `asked`: a tree of [R]."""
  vocab, steps = unembed_VxD.shape[0], unembed_VxD.shape[1] // _STEP
  out = jax.eval_shape(empty)

  def begin(tile: Array) -> Array:
    return (jax.lax.axis_index("split") * tiling.walk + tile) * tiling.block_ids

  def start(tile: Array) -> Array:
    """The last tile is moved back to end at V, so that copies stay inside."""
    return jnp.minimum(begin(tile), vocab - tiling.block_ids)

  def program(hidden, unembed, *refs):
    *row_refs, hidden_ring, unembed_ring, filled, used, asked_here, arrived, out_here = refs
    count = len(jax.tree.leaves(asked))
    asked_refs, out_refs = row_refs[:count], row_refs[count:]
    worker = jax.lax.axis_index("warpgroup")
    block = jax.lax.axis_index("group") * tiling.blocks + jax.lax.axis_index("block")

    @pl.when(worker == _WORKERS)
    def _copy():
      plgpu.set_max_registers(40, action="decrease")
      rows = pl.ds(block * tiling.block_rows, tiling.block_rows)

      @pl.loop(0, tiling.walk * steps + tiling.slots)  # the last turns see the ring empty again
      def _step(n):
        slot = jax.lax.rem(n, tiling.slots)

        @pl.when(n >= tiling.slots)
        def _():
          plgpu.barrier_wait(used.at[slot])

        @pl.when(n < tiling.walk * steps)
        def _():
          depth = pl.ds(jax.lax.rem(n, steps) * _STEP, _STEP)
          ids = pl.ds(start(jax.lax.div(n, steps)), tiling.block_ids)
          plgpu.copy_gmem_to_smem(hidden.at[rows, depth], hidden_ring.at[slot], filled.at[slot])
          plgpu.copy_gmem_to_smem(unembed.at[ids, depth], unembed_ring.at[slot], filled.at[slot])

    @pl.when(worker < _WORKERS)
    def _work():
      plgpu.set_max_registers(232, action="increase")
      row, offset = (0, worker * tiling.tile) if tiling.by_ids else (worker * _ROWS, 0)
      rows = pl.ds(block * tiling.block_rows + row, _ROWS)
      mine = _load(asked_refs, asked_here, arrived, rows, worker)

      def multiply(tile: Array) -> Array:
        def accumulate(logits):
          @pl.loop(0, steps)
          def _step(k):
            n = tile * steps + k
            slot = jax.lax.rem(n, tiling.slots)
            plgpu.barrier_wait(filled.at[slot])
            ids = unembed_ring.at[slot, pl.ds(offset, tiling.tile)]
            rows = hidden_ring.at[slot, pl.ds(row, _ROWS)]
            plgpu.wgmma(logits, rows, plgpu.transpose_ref(ids, (1, 0)))
            plgpu.wgmma_wait(1)  # the step before is done, so its slot may be filled again

            @pl.when(k > 0)
            def _():
              plgpu.barrier_arrive(used.at[jax.lax.rem(n - 1, tiling.slots)])

          return logits[...]

        z_RxT = pl.run_scoped(accumulate, plgpu.ACC((_ROWS, tiling.tile), jnp.float32))
        plgpu.barrier_arrive(used.at[jax.lax.rem((tile + 1) * steps - 1, tiling.slots)])
        return z_RxT

      def step(tile: Array, state: tiles.State) -> tiles.State:
        z_RxT = multiply(tile)
        for lane in range(0, tiling.tile, _LANES):
          z_RxN = z_RxT[:, lane : lane + _LANES]
          offset_RxN = start(tile) + offset + lane
          offset_RxN += jax.lax.broadcasted_iota(jnp.int32, z_RxN.shape, 1)
          state = add(state, z_RxN, offset_RxN, begin(tile), mine)
        return state

      state = jax.lax.fori_loop(0, tiling.walk, step, empty())
      part = jax.lax.axis_index("split")
      part = part * _WORKERS + worker if tiling.by_ids else part
      _store(state, out_here, out_refs, worker, (part, rows))

  swizzled = plgpu.TilingTransform((8, _STEP)), plgpu.SwizzleTransform(2 * _STEP)

  def ring(size: int) -> Any:
    return plgpu.SMEM((tiling.slots, size, _STEP), jnp.bfloat16, transforms=swizzled)

  def of_workers(x: Any) -> Any:
    return plgpu.SMEM((_WORKERS, _ROWS), x.dtype)

  kernel = plgpu.kernel(
    program,
    out_type=[
      jax.ShapeDtypeStruct((tiling.parts, tiling.rows), x.dtype) for x in jax.tree.leaves(out)
    ],
    scratch_types=[
      ring(tiling.block_rows),
      ring(tiling.block_ids),
      plgpu.Barrier(num_arrivals=2, num_barriers=tiling.slots),  # two copies fill a slot
      plgpu.Barrier(num_arrivals=_WORKERS, num_barriers=tiling.slots),
      jax.tree.map(of_workers, asked),
      plgpu.Barrier(num_arrivals=len(jax.tree.leaves(asked)), num_barriers=_WORKERS),
      jax.tree.map(of_workers, out),
    ],
    grid=(tiling.groups, tiling.splits, tiling.blocks),
    grid_names=("group", "split", "block"),
    num_threads=_WORKERS + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
  )
  with jax.enable_x64(False):  # else indices are int64
    parts = kernel(hidden_RxD, unembed_VxD, *jax.tree.leaves(asked))
  return jax.tree.unflatten(jax.tree.structure(out), parts)


def _load(sources: list[Any], here: Any, arrived: Any, rows: pl.Slice, worker: Array) -> Any:
  """A worker's rows, in registers, by way of shared memory."""
  for source, ref in zip(sources, jax.tree.leaves(here), strict=True):
    plgpu.copy_gmem_to_smem(source.at[rows], ref.at[worker], arrived.at[worker])
  plgpu.barrier_wait(arrived.at[worker])
  return jax.tree.map(lambda ref: ref[worker], here)


def _store(state: Any, here: Any, targets: list[Any], worker: Array, where: Any) -> None:
  for value_R, ref in zip(jax.tree.leaves(state), jax.tree.leaves(here), strict=True):
    ref[worker] = value_R
  plgpu.commit_smem()
  for ref, target in zip(jax.tree.leaves(here), targets, strict=True):
    plgpu.copy_smem_to_gmem(ref.at[worker], target.at[where])
  plgpu.wait_smem_to_gmem(0)
