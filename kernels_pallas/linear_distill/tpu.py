"""The divergence and its gradient by TPU kernels: logits of both never leave VMEM.

Forward is one pass over both vocabularies. Backward goes over stretches of the ids: a kernel
computes their logits again and leaves the gradients of the student's, which XLA multiplies by the
unembedding and by the hidden rows. Six matmuls in all, as in XLA's tiles; kernels that summed a
gradient each, as those of `linear_xent`, would need eight.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import vmem, vocabulary
from kernels_pallas.linear_distill import tile as tiles
from kernels_pallas.linear_distill.gradient import Operands, divergence
from kernels_pallas.linear_distill.spec import Spec
from kernels_pallas.vocabulary import Held

Array = jax.Array

_ALIVE = 6  # arrays of a tile of logits that exist at once: logits and weights of both, their gap
_COLUMNS = 6  # of a state, which are more than what backward reads of each row
_SUBLANES = 8
# Of a stretch's logits, or of its part of the unembedding: 32 MiB in bfloat16, which is little
# beside a model, while a product of so many ids still is much work for one launch.
_STRETCH_ELEMENTS = 1 << 24


def linear_distill(
  hidden_RxD: Array,
  unembed_VxD: Array,
  teacher_hidden_RxE: Array,
  teacher_unembed_VxE: Array,
  spec: Spec,
  *,
  tile: tuple[int, int] | None = None,
  stretch: int | None = None,
) -> Array:
  """See `kernels_pallas.linear_distill.linear_distill`.

  Args:
    tile: rows and ids; None: `vmem.tile_sizes`.
    stretch: ids that backward takes at a time; None: a few thousand, see `_STRETCH_ELEMENTS`.

  Raises:
    NotImplementedError: the widths are too large for VMEM.
  """
  passes = _Passes(spec, tile, stretch)
  operands = Operands(hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE)
  passes.tile_sizes(operands)  # refuses here: in the backward pass of `jax.grad` it is too late
  return divergence(passes, operands)


@dataclasses.dataclass(frozen=True)
class _Passes:
  """See `gradient.Passes`."""

  spec: Spec
  tile: tuple[int, int] | None  # rows, ids
  stretch: int | None  # ids

  def forward(self, operands: Operands, held: Held) -> tiles.State:
    rows, (tile_rows, _) = operands.hidden_RxD.shape[0], self.tile_sizes(operands)

    def empty(rows: int) -> tiles.State:
      return tiles.empty(jnp.full((rows, 1), -jnp.inf, jnp.float32), self.spec)

    def add(student_RxT: Array, teacher_RxT: Array, live_1xT: Array, state_refs: Any) -> None:
      """Adds a tile of ids to the state of a tile of rows, whose block stays in VMEM meanwhile."""

      @pl.when(pl.program_id(1) == 0)
      def _():
        vmem.store(state_refs, empty(tile_rows))

      found = tiles.of_tile(student_RxT, teacher_RxT, live_1xT, self.spec)
      vmem.store(state_refs, tiles.merge(vmem.load(state_refs), found))

    shapes = jax.eval_shape(lambda: empty(rows))
    column = pl.BlockSpec((tile_rows, 1), lambda r, v: (r, 0))
    (state,) = self._over_tiles(
      add,
      operands,
      first=held.first,
      order=("parallel", "arbitrary"),
      out_specs=(jax.tree.map(lambda _: column, shapes),),
      out_shape=(shapes,),
      name="linear_distill",
    )
    return state

  def backward(
    self,
    operands: Operands,
    sums: tiles.Sums,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    hidden_RxD, unembed_VxD = operands[:2]
    vocab, tile_ids = unembed_VxD.shape[0], self.tile_sizes(operands)[1]
    most = _STRETCH_ELEMENTS // max(*hidden_RxD.shape, operands.teacher_hidden_RxE.shape[1])
    stretch = min(self.stretch or max(most // tile_ids, 1) * tile_ids, vocab)
    by_row = jax.tree.map(lambda x_R: x_R[:, None], (sums, grad_R))

    def add(state: tuple[Array, Array], part: vocabulary.Tile) -> tuple[Array, Array]:
      teacher_TxE = jax.lax.dynamic_slice_in_dim(operands.teacher_unembed_VxE, part.start, stretch)
      own = operands._replace(unembed_VxD=part.unembed_TxD, teacher_unembed_VxE=teacher_TxE)
      d_z_RxT = self._d_z(own, by_row, part.ids_T[0], (~part.live_T).sum(dtype=jnp.int32))
      return vocabulary.add_gradients(state, d_z_RxT, hidden_RxD, part.unembed_TxD, part.start)

    hidden_dtype, unembed_dtype = dtypes
    nothing = vocabulary.no_gradients(hidden_RxD, unembed_VxD, unembed_dtype)
    d_hidden_RxD, d_unembed_VxD = vocabulary.sweep(
      add, nothing, unembed_VxD, tile=stretch, forbidden=(), first=held.first
    )
    return d_hidden_RxD.astype(hidden_dtype), d_unembed_VxD

  def _d_z(self, operands: Operands, by_row: Any, first: Array | int, stale: Array) -> Array:
    """The gradients of the student's products, [R, T], 0 for so many first ids as are `stale`."""
    shape = operands.hidden_RxD.shape[0], operands.unembed_VxD.shape[0]
    dtype = jnp.result_type(*operands[:2])

    def write(student_RxT: Array, teacher_RxT: Array, live_1xT: Array, refs: Any, out_ref) -> None:
      sums, grad_Rx1 = vmem.load(refs)
      d_z_RxT = tiles.gradient(student_RxT, teacher_RxT, live_1xT, sums, grad_Rx1, self.spec)
      out_ref[...] = d_z_RxT.astype(dtype)

    return self._over_tiles(
      write,
      operands,
      by_row,
      first=first,
      stale=stale,
      order=("parallel", "parallel"),
      out_specs=pl.BlockSpec(self.tile_sizes(operands), lambda r, v: (r, v)),
      out_shape=jax.ShapeDtypeStruct(shape, dtype),
      name="linear_distill_d_logits",
    )

  def _over_tiles(
    self,
    use: Callable[..., None],
    operands: Operands,
    *by_row: Any,
    first: Array | int,
    stale: Array | int = 0,
    order: tuple[str, str],
    **results: Any,
  ) -> Any:
    """A kernel that runs `use(student's logits, teacher's, which are live, *refs)` on each tile.

    Args:
      by_row: trees of [R, 1].
      first: the lowest id.
      stale: so many of the first ids are not live.
    """
    rows, vocab = operands.hidden_RxD.shape[0], operands.unembed_VxD.shape[0]
    tile_rows, tile_ids = self.tile_sizes(operands)

    def kernel(at_ref, operand_refs: Operands, *refs: Any) -> None:
      hidden_RxD, unembed_TxD, teacher_hidden_RxE, teacher_unembed_TxE = vmem.load(operand_refs)
      index_1xT = pl.program_id(1) * tile_ids
      index_1xT += jax.lax.broadcasted_iota(jnp.int32, (1, tile_ids), 1)
      live_1xT = (index_1xT >= at_ref[1]) & (index_1xT < vocab)
      live_1xT &= ~vocabulary.among(at_ref[0] + index_1xT, self.spec.forbidden)
      student_RxT = self.spec.student(hidden_RxD, unembed_TxD)
      teacher_RxT = self.spec.teacher(teacher_hidden_RxE, teacher_unembed_TxE)
      use(student_RxT, teacher_RxT, live_1xT, *refs)

    def of_rows(x: Array) -> pl.BlockSpec:
      return pl.BlockSpec((tile_rows, x.shape[1]), lambda r, v: (r, 0))

    def of_ids(x: Array) -> pl.BlockSpec:
      return pl.BlockSpec((tile_ids, x.shape[1]), lambda r, v: (v, 0))

    blocks = (of_rows, of_ids, of_rows, of_ids)
    in_specs = Operands(*(block(x) for block, x in zip(blocks, operands, strict=True)))
    with jax.enable_x64(False):  # else index maps are int64, which do not compile
      at_2 = jnp.stack([jnp.asarray(x, jnp.int32) for x in (first, stale)])
      return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, tile_rows), pl.cdiv(vocab, tile_ids)),
        in_specs=[
          pl.BlockSpec(memory_space=pltpu.SMEM),
          in_specs,
          *jax.tree.map(of_rows, by_row),
        ],
        compiler_params=pltpu.CompilerParams(
          dimension_semantics=order, vmem_limit_bytes=vmem.LIMIT_BYTES
        ),
        **results,
      )(at_2, operands, *by_row)

  def tile_sizes(self, operands: Operands) -> tuple[int, int]:
    """Rows and ids of all kernels; of them the one of the backward pass needs most."""
    if self.tile:
      return self.tile
    hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE = operands

    def nbytes_each(*arrays: Array) -> int:
      return sum(x.shape[1] * x.dtype.itemsize for x in arrays)

    of_row = nbytes_each(hidden_RxD, teacher_hidden_RxE)
    of_id = nbytes_each(unembed_VxD, teacher_unembed_VxE)

    def nbytes(rows: int, ids: int) -> int:
      buffered = 2 * (rows * of_row + ids * of_id + 4 * rows * ids)
      return buffered + _ALIVE * 4 * rows * ids + vmem.columns(rows, _COLUMNS)

    rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
    return vmem.tile_sizes(max(rows, _SUBLANES), vocab, nbytes)
