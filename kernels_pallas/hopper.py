"""Tiles of hidden @ unembed.T on NVIDIA's Hopper: what the GPU kernels over a vocabulary share.

A program holds a block of rows and walks over its part of the ids. One of its warpgroups copies
what is multiplied next into a ring in shared memory; the other two, the workers, multiply and use
each tile of logits where it is: in their registers. No GPU has run this yet.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

Array = jax.Array

ROWS = 64  # of a warpgroup's matmul
PROGRAMS = 132  # multiprocessors of an H100. With another number the kernel is slower, not wrong
WORKERS = 2  # warpgroups that multiply; one more copies
MAX_TILE = 256  # ids of a warpgroup's matmul: its logits take 128 registers of each thread
PER_ROW = plgpu.Layout.WGMMA.reduce(1)  # where threads hold a number a row: beside its logits
SWIZZLED = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)  # of 16-bit numbers

_STEP = 64  # of D that a step multiplies: 128 bytes, the widest swizzle
_SHARED_BYTES = 226 << 10  # of the 227 KiB that a program may have; barriers take a little
_COLUMN_BYTES = 1 << 10  # of a number a row: so are arrays in shared memory aligned
_BLOCKS_AT_ONCE = 16  # 2048 rows of D = 4096 are 16 MiB, and the L2 cache has 50


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
    return ROWS if self.by_ids else ROWS * WORKERS

  @property
  def block_ids(self) -> int:
    return self.tile * WORKERS if self.by_ids else self.tile

  @property
  def rows(self) -> int:
    """With those that fill the last block."""
    return self.groups * self.blocks * self.block_rows

  def filling(self, beside: int) -> "Tiling":
    """With as many slots as shared memory holds when `beside` bytes are taken."""
    slot = (self.block_rows + self.block_ids) * _STEP * 2
    return dataclasses.replace(self, slots=(_SHARED_BYTES - beside) // slot)

  @property
  def ids(self) -> int:
    """Of all programs, as if each tile were whole."""
    return self.splits * self.walk * self.block_ids

  @property
  def parts(self) -> int:
    """Of the vocabulary, each with a state of its own."""
    return self.splits * (WORKERS if self.by_ids else 1)


def tiling_for(
  rows: int,
  vocab: int,
  *,
  beside: int = 10 * _COLUMN_BYTES,
  programs: int = PROGRAMS,
  max_tile: int = MAX_TILE,
) -> Tiling:
  """All programs get equally many tiles, as wide as that allows.

  Up to 64 rows, reading the unembedding is what takes time. It is read once, and since each tile
  reads the rows again, two workers' ids side by side keep those an eighth of the traffic. With more
  rows the matmul takes the time, and 128 rows by 256 ids are what registers hold. Blocks of rows at
  the same split read the same ids from L2 as long as they run together, hence the groups.

  Args:
    beside: bytes of shared memory that are not for the ring.
  """
  by_ids = rows <= ROWS
  blocks = pl.cdiv(rows, ROWS if by_ids else ROWS * WORKERS)
  groups = pl.cdiv(blocks, _BLOCKS_AT_ONCE)
  blocks = pl.cdiv(blocks, groups)
  splits = max(1, programs // blocks)
  parts = splits * (WORKERS if by_ids else 1)
  walk = pl.cdiv(vocab, parts * max_tile)
  tile = 8 * pl.cdiv(vocab, parts * walk * 8)
  return Tiling(by_ids, groups, blocks, splits, walk, tile, slots=0).filling(beside)


def columns(*trees: Any) -> int:
  """Bytes of shared memory that numbers per row take, one for each leaf."""
  return _COLUMN_BYTES * len(jax.tree.leaves(trees))


def check(hidden_RxD: Array, unembed_VxD: Array) -> None:
  """NotImplementedError for types and sizes that `walk` is not for."""
  vocab, width = unembed_VxD.shape
  if hidden_RxD.dtype != jnp.bfloat16 or unembed_VxD.dtype != jnp.bfloat16:
    raise NotImplementedError(
      f"hidden and unembed must be bfloat16, not {hidden_RxD.dtype} and {unembed_VxD.dtype}"
    )
  if width % _STEP:
    raise NotImplementedError(f"the width, {width}, must be a multiple of {_STEP}")
  if vocab % 8:
    raise NotImplementedError(f"the vocabulary, {vocab}, must be a multiple of 8")


def check_tiling(tiling: Tiling, vocab: int) -> None:
  if vocab < tiling.block_ids:
    raise NotImplementedError(
      f"the vocabulary, {vocab}, must be at least one tile, {tiling.block_ids}"
    )
  if tiling.slots < 2:
    raise NotImplementedError("shared memory holds no ring of two slots beside what is asked")


def padded(tiling: Tiling, x_Rx: Array) -> Array:
  """With rows of zeros that fill the last block."""
  return jnp.pad(x_Rx, [(0, tiling.rows - x_Rx.shape[0])] + [(0, 0)] * (x_Rx.ndim - 1))


class Place(NamedTuple):
  """What a worker has to do."""

  worker: Array
  rows: pl.Slice  # of all
  part: Array  # of the vocabulary
  begin: Callable[[Array], Array]  # of a tile: the first id that was in no tile before
  start: Callable[[Array], Array]  # the first id of its logits: the last tile ends at V
  multiply: Callable[[Array], Array]  # its logits, float32 [ROWS, tile]


def walk(
  tiling: Tiling,
  hidden_RxD: Array,
  unembed_VxD: Array,
  asked: Any,
  work: Callable[..., None],
  out_type: list[jax.ShapeDtypeStruct],
  scratch: Any,
) -> list[Array]:
  """Runs `work(place, asked, out_refs, scratch_refs)` in each worker of each program.

  Args:
    hidden_RxD: `tiling.rows` of them, and so many of `asked`, a tree of [R] that workers are given
      in registers, [ROWS] each.
    scratch: a tree of shared memory; both workers see all of it.
  """
  vocab, steps = unembed_VxD.shape[0], unembed_VxD.shape[1] // _STEP

  def begin(tile: Array) -> Array:
    return (jax.lax.axis_index("split") * tiling.walk + tile) * tiling.block_ids

  def start(tile: Array) -> Array:
    """The last tile is moved back to end at V, so that copies stay inside."""
    return jnp.minimum(begin(tile), vocab - tiling.block_ids)

  def program(hidden, unembed, *refs):
    *row_refs, hidden_ring, unembed_ring, filled, used, asked_here, arrived, scratch_refs = refs
    count = len(jax.tree.leaves(asked))
    asked_refs, out_refs = row_refs[:count], row_refs[count:]
    worker = jax.lax.axis_index("warpgroup")
    block = jax.lax.axis_index("group") * tiling.blocks + jax.lax.axis_index("block")

    @pl.when(worker == WORKERS)
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

    @pl.when(worker < WORKERS)
    def _work():
      plgpu.set_max_registers(232, action="increase")
      row, offset = (0, worker * tiling.tile) if tiling.by_ids else (worker * ROWS, 0)
      rows = pl.ds(block * tiling.block_rows + row, ROWS)
      mine = _load(asked_refs, asked_here, arrived, rows, worker)

      def multiply(tile: Array) -> Array:
        def accumulate(logits):
          @pl.loop(0, steps)
          def _step(k):
            n = tile * steps + k
            slot = jax.lax.rem(n, tiling.slots)
            plgpu.barrier_wait(filled.at[slot])
            ids = unembed_ring.at[slot, pl.ds(offset, tiling.tile)]
            rows = hidden_ring.at[slot, pl.ds(row, ROWS)]
            plgpu.wgmma(logits, rows, plgpu.transpose_ref(ids, (1, 0)))
            plgpu.wgmma_wait(1)  # the step before is done, so its slot may be filled again

            @pl.when(k > 0)
            def _():
              plgpu.barrier_arrive(used.at[jax.lax.rem(n - 1, tiling.slots)])

          return logits[...]

        z_RxT = pl.run_scoped(accumulate, plgpu.ACC((ROWS, tiling.tile), jnp.float32))
        plgpu.barrier_arrive(used.at[jax.lax.rem((tile + 1) * steps - 1, tiling.slots)])
        return z_RxT

      part = jax.lax.axis_index("split")
      part = part * WORKERS + worker if tiling.by_ids else part
      place = Place(worker, rows, part, begin, lambda tile: start(tile) + offset, multiply)
      work(place, mine, out_refs, scratch_refs)

  def ring(size: int) -> Any:
    return plgpu.SMEM((tiling.slots, size, _STEP), jnp.bfloat16, transforms=SWIZZLED)

  kernel = plgpu.kernel(
    program,
    out_type=out_type,
    scratch_types=[
      ring(tiling.block_rows),
      ring(tiling.block_ids),
      plgpu.Barrier(num_arrivals=2, num_barriers=tiling.slots),  # two copies fill a slot
      plgpu.Barrier(num_arrivals=WORKERS, num_barriers=tiling.slots),
      jax.tree.map(_of_workers, asked),
      plgpu.Barrier(num_arrivals=len(jax.tree.leaves(asked)), num_barriers=WORKERS),
      scratch,
    ],
    grid=(tiling.groups, tiling.splits, tiling.blocks),
    grid_names=("group", "split", "block"),
    num_threads=WORKERS + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
  )
  with jax.enable_x64(False):  # else indices are int64
    return kernel(hidden_RxD, unembed_VxD, *jax.tree.leaves(asked))


def fold(
  tiling: Tiling,
  hidden_RxD: Array,
  unembed_VxD: Array,
  asked: Any,
  empty: Callable[[], Any],
  add: Callable[..., Any],
  lanes: int,
) -> Any:
  """The states of all parts, [P, R]: `state = add(state, z_RxT, offset_RxT, begin, asked)`, each
  from `empty()`, trees of [ROWS].

  `z_RxT` are the logits of ids `offset`; those before `begin` were in the tile before.

  Args:
    lanes: ids that are added at once.
  """
  out = jax.eval_shape(empty)

  def work(place: Place, asked: Any, out_refs: list[Any], here: Any) -> None:
    def step(tile: Array, state: Any) -> Any:
      z_RxT = place.multiply(tile)
      for lane in range(0, tiling.tile, lanes):
        z_RxN = plgpu.layout_cast(z_RxT[:, lane : lane + lanes], plgpu.Layout.WGMMA)
        offset_RxN = place.start(tile) + lane
        offset_RxN += jax.lax.broadcasted_iota(jnp.int32, z_RxN.shape, 1)
        state = add(state, z_RxN, offset_RxN, place.begin(tile), asked)
      return state

    state = jax.tree.map(lambda x_R: plgpu.layout_cast(x_R, PER_ROW), empty())
    state = jax.lax.fori_loop(0, tiling.walk, step, state)
    _store(state, here, out_refs, place.worker, (place.part, place.rows))

  shapes = [
    jax.ShapeDtypeStruct((tiling.parts, tiling.rows), x.dtype) for x in jax.tree.leaves(out)
  ]
  here = jax.tree.map(_of_workers, out)
  parts = walk(tiling, hidden_RxD, unembed_VxD, asked, work, shapes, here)
  return jax.tree.unflatten(jax.tree.structure(out), parts)


def wide(x_R: Array, like_RxT: Array) -> Array:
  """A number per row beside each logit."""
  return jax.lax.broadcast_in_dim(x_R, like_RxT.shape, (0,))


def _of_workers(x: Any) -> Any:
  return plgpu.SMEM((WORKERS, ROWS), x.dtype)


def _load(sources: list[Any], here: Any, arrived: Any, rows: pl.Slice, worker: Array) -> Any:
  """A worker's rows, in registers, by way of shared memory."""
  for source, ref in zip(sources, jax.tree.leaves(here), strict=True):
    plgpu.copy_gmem_to_smem(source.at[rows], ref.at[worker], arrived.at[worker])
  plgpu.barrier_wait(arrived.at[worker])
  return jax.tree.map(lambda ref: plgpu.layout_cast(ref[worker], PER_ROW), here)


def _store(state: Any, here: Any, targets: list[Any], worker: Array, where: Any) -> None:
  for value_R, ref in zip(jax.tree.leaves(state), jax.tree.leaves(here), strict=True):
    ref[worker] = value_R
  plgpu.commit_smem()
  for ref, target in zip(jax.tree.leaves(here), targets, strict=True):
    plgpu.copy_smem_to_gmem(ref.at[worker], target.at[where])
  plgpu.wait_smem_to_gmem(0)
