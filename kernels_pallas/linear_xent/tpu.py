"""Cross-entropy and its gradient by TPU kernels: logits and their gradients never leave VMEM.

Both gradients compute the logits again, each in an order of its own: that of hidden sums over ids
first, that of the unembedding over rows. Five matmuls in all, where keeping [R, V] needs three.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import precision, vmem, vocabulary
from kernels_pallas.linear_xent.gradient import by_statistics, cross_entropy
from kernels_pallas.token_stats import tpu as token_stats
from kernels_pallas.vocabulary import Held

Array = jax.Array

_ALIVE = 4  # arrays of a tile of logits that exist at once
_SUBLANES = 8


def linear_xent(
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tile: tuple[int, int] | None = None,
) -> Array:
  """See `kernels_pallas.linear_xent.linear_xent`. `tile`: rows and ids (None: `vmem.tile_sizes`).

  Raises:
    NotImplementedError: the width is too large for VMEM.
  """
  if tile is None:
    _tile_sizes(hidden_RxD, unembed_VxD)  # asked here too: the backward pass would raise too late
  return cross_entropy(_Passes(forbidden, soft_cap, tile), hidden_RxD, unembed_VxD, target_R)


def _tile_sizes(hidden_RxD: Array, unembed_VxD: Array) -> tuple[int, int]:
  """Those of the backward pass, whose results and their sums have the shapes of its operands."""
  (rows, width), vocab = hidden_RxD.shape, unembed_VxD.shape[0]

  def nbytes(rows: int, ids: int) -> int:
    operands = rows * hidden_RxD.dtype.itemsize + ids * unembed_VxD.dtype.itemsize
    result = 8 * max(rows, ids)  # of float32, or of bfloat16 and beside it a sum in float32
    return width * (2 * operands + result) + _ALIVE * 4 * rows * ids + vmem.columns(rows, 3)

  # Mosaic does not compile the matmuls of a single row in bfloat16.
  return vmem.tile_sizes(max(rows, _SUBLANES), vocab, nbytes)


@dataclasses.dataclass(frozen=True)
class _Passes:
  """See `gradient.Passes`."""

  forbidden: tuple[int, ...]
  soft_cap: float | None
  tile: tuple[int, int] | None  # rows, ids

  def forward(
    self, hidden_RxD: Array, unembed_VxD: Array, target_R: Array, held: Held
  ) -> tuple[Array, Array]:
    how = dict(held=held, soft_cap=self.soft_cap, tile=self.tile)
    return by_statistics(
      token_stats.token_stats, self.forbidden, hidden_RxD, unembed_VxD, target_R, **how
    )

  def backward(
    self,
    hidden_RxD: Array,
    unembed_VxD: Array,
    target_R: Array,
    lse_R: Array,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    tile = self.tile or _tile_sizes(hidden_RxD, unembed_VxD)
    rows = hidden_RxD.shape[0]

    def whole_tiles(x: Array) -> Array:  # rows that are added have gradient 0, which adds nothing
      return jnp.pad(x, [(0, -rows % tile[0])] + [(0, 0)] * (x.ndim - 1))

    by_row = target_R.astype(jnp.int32), lse_R, grad_R
    hidden_RxD, *by_row = map(whole_tiles, (hidden_RxD, *by_row))
    operands = jnp.full(1, held.first, jnp.int32), hidden_RxD, unembed_VxD, *by_row
    hidden_dtype, unembed_dtype = dtypes
    with jax.enable_x64(False):  # else index maps are int64, which do not compile
      d_hidden_RxD = self._d_hidden(*operands, tile=tile, dtype=hidden_dtype)
      d_unembed_VxD = self._d_unembed(*operands, tile=tile, dtype=unembed_dtype)
    return d_hidden_RxD[:rows], d_unembed_VxD

  def _d_hidden(
    self,
    first_1: Array,
    hidden_RxD: Array,
    unembed_VxD: Array,
    *by_row: Array,
    tile: tuple[int, int],
    dtype: jnp.dtype,
  ) -> Array:
    (rows, width), vocab = hidden_RxD.shape, unembed_VxD.shape[0]
    tile_rows, tile_ids = tile
    of_rows = pl.BlockSpec((tile_rows, width), lambda r, v: (r, 0))
    column = pl.BlockSpec((tile_rows, 1), lambda r, v: (r, 0))

    def kernel(first_ref, hidden_ref, unembed_ref, *refs):
      *by_row_refs, out_ref, sum_ref = refs if dtype != jnp.float32 else (*refs, refs[-1])
      start = pl.program_id(1) * tile_ids
      unembed_TxD = unembed_ref[...]
      if vocab % tile_ids:  # beyond the last id there may be NaN, which 0 would not hide
        index_Tx1 = start + jax.lax.broadcasted_iota(jnp.int32, (tile_ids, 1), 0)
        unembed_TxD = jnp.where(index_Tx1 < vocab, unembed_TxD, 0)
      ids_1xT = first_ref[0] + start + jax.lax.broadcasted_iota(jnp.int32, (1, tile_ids), 1)
      z_RxT = vocabulary.logits(hidden_ref[...], unembed_TxD, self.soft_cap)
      d_z_RxT = self._d_z(z_RxT, ids_1xT, first_ref[0] + vocab, *vmem.load(by_row_refs))
      _add(sum_ref, out_ref, d_z_RxT, unembed_TxD)

    return _call(
      kernel,
      grid=(rows // tile_rows, pl.cdiv(vocab, tile_ids)),
      in_specs=[of_rows, pl.BlockSpec((tile_ids, width), lambda r, v: (v, 0)), *[column] * 3],
      out_specs=of_rows,
      out_shape=jax.ShapeDtypeStruct(hidden_RxD.shape, dtype),
      name="linear_xent_d_hidden",
    )(first_1, hidden_RxD, unembed_VxD, *(x_R[:, None] for x_R in by_row))

  def _d_unembed(
    self,
    first_1: Array,
    hidden_RxD: Array,
    unembed_VxD: Array,
    *by_row: Array,
    tile: tuple[int, int],
    dtype: jnp.dtype,
  ) -> Array:
    """Logits are [T, R] here, so that the sum over rows is a matmul without a transpose."""
    (rows, width), vocab = hidden_RxD.shape, unembed_VxD.shape[0]
    tile_rows, tile_ids = tile
    of_ids = pl.BlockSpec((tile_ids, width), lambda v, r: (v, 0))
    line = pl.BlockSpec((1, tile_rows), lambda v, r: (0, r))

    def kernel(first_ref, hidden_ref, unembed_ref, *refs):
      *by_row_refs, out_ref, sum_ref = refs if dtype != jnp.float32 else (*refs, refs[-1])
      start = first_ref[0] + pl.program_id(0) * tile_ids
      ids_Tx1 = start + jax.lax.broadcasted_iota(jnp.int32, (tile_ids, 1), 0)
      z_TxR = vocabulary.logits(unembed_ref[...], hidden_ref[...], self.soft_cap)
      d_z_TxR = self._d_z(z_TxR, ids_Tx1, first_ref[0] + vocab, *vmem.load(by_row_refs))
      _add(sum_ref, out_ref, d_z_TxR, hidden_ref[...])

    return _call(
      kernel,
      grid=(pl.cdiv(vocab, tile_ids), rows // tile_rows),
      in_specs=[pl.BlockSpec((tile_rows, width), lambda v, r: (r, 0)), of_ids, *[line] * 3],
      out_specs=of_ids,
      out_shape=jax.ShapeDtypeStruct(unembed_VxD.shape, dtype),
      name="linear_xent_d_unembed",
    )(first_1, hidden_RxD, unembed_VxD, *(x_R[None, :] for x_R in by_row))

  def _d_z(self, z: Array, ids: Array, end: Array, target: Array, lse: Array, grad: Array) -> Array:
    """The gradient of a tile of logits, [R, T] or [T, R]; `ids` and the rest broadcast to it."""
    d_z = grad * (jnp.exp(z - lse) - (ids == target).astype(jnp.float32))
    if self.soft_cap is not None:
      d_z *= 1 - jnp.square(z / self.soft_cap)
    dead = (ids >= end) | vocabulary.among(ids, self.forbidden)
    return jnp.where(dead | (grad == 0), 0, d_z)


def _call(
  kernel: Callable[..., None],
  *,
  in_specs: list[pl.BlockSpec],
  out_specs: pl.BlockSpec,
  out_shape: jax.ShapeDtypeStruct,
  **others: Any,
) -> Callable[..., Array]:
  """A kernel that sums over the last axis of its grid: in its result, or beside it in float32."""
  narrow = out_shape.dtype != jnp.float32
  return pl.pallas_call(
    kernel,
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs],
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=[pltpu.VMEM(out_specs.block_shape, jnp.float32)] if narrow else [],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem.LIMIT_BYTES
    ),
    **others,
  )


def _add(sum_ref, out_ref, d_z: Array, factor: Array) -> None:
  """Adds a tile's share to the sum over the last grid axis, which in the end is the result."""

  @pl.when(pl.program_id(1) == 0)
  def _():
    sum_ref[...] = jnp.zeros_like(sum_ref)

  sum_ref[...] += jnp.dot(
    d_z.astype(factor.dtype),
    factor,
    precision=precision.of(factor),
    preferred_element_type=jnp.float32,
  )

  if sum_ref is not out_ref:

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
      out_ref[...] = sum_ref[...].astype(out_ref.dtype)
