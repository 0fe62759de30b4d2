"""The divergence and its gradient over tiles of both vocabularies: no [R, V] array exists.

The backward pass computes logits again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.linear_distill import tile as tiles
from kernels_pallas.linear_distill.gradient import Operands, divergence
from kernels_pallas.linear_distill.spec import Spec
from kernels_pallas.vocabulary import Held

Array = jax.Array


def linear_distill(
  hidden_RxD: Array,
  unembed_VxD: Array,
  teacher_hidden_RxE: Array,
  teacher_unembed_VxE: Array,
  spec: Spec,
  tile: int | None = None,
) -> Array:
  """See `kernels_pallas.linear_distill.linear_distill`. `tile`: ids, None: `tile_size`."""
  operands = Operands(hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE)
  return divergence(_Passes(spec, tile), operands)


@dataclasses.dataclass(frozen=True)
class _Passes:
  """See `gradient.Passes`."""

  spec: Spec
  tile: int | None

  def forward(self, operands: Operands, held: Held) -> tiles.State:
    def add(
      state: tiles.State, part: vocabulary.Tile, student_RxT: Array, teacher_RxT: Array
    ) -> tiles.State:
      found = tiles.of_tile(student_RxT, teacher_RxT, part.live_T[None, :], self.spec)
      return tiles.merge(state, found)

    lowest_Rx1 = jnp.full_like(operands.hidden_RxD[:, :1], -jnp.inf, dtype=jnp.float32)
    return self._sweep(add, tiles.empty(lowest_Rx1, self.spec), operands, held)

  def backward(
    self,
    operands: Operands,
    sums: tiles.Sums,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    hidden_dtype, unembed_dtype = dtypes
    hidden_RxD, unembed_VxD = operands[:2]
    sums, grad_Rx1 = jax.tree.map(lambda x_R: x_R[:, None], (sums, grad_R))

    def add(
      state: tuple[Array, Array], part: vocabulary.Tile, student_RxT: Array, teacher_RxT: Array
    ) -> tuple[Array, Array]:
      live_1xT = part.live_T[None, :]
      d_z_RxT = tiles.gradient(student_RxT, teacher_RxT, live_1xT, sums, grad_Rx1, self.spec)
      return vocabulary.add_gradients(state, d_z_RxT, hidden_RxD, part.unembed_TxD, part.start)

    nothing = vocabulary.no_gradients(hidden_RxD, unembed_VxD, unembed_dtype)
    d_hidden_RxD, d_unembed_VxD = self._sweep(add, nothing, operands, held)
    return d_hidden_RxD.astype(hidden_dtype), d_unembed_VxD

  def _sweep(self, step: Callable[..., Any], state: Any, operands: Operands, held: Held) -> Any:
    """Folds `step(state, tile, student's logits, teacher's)` over the ids at hand."""
    hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE = operands
    tile = vocabulary.tile_size(hidden_RxD, unembed_VxD, self.tile)

    def at(state: Any, part: vocabulary.Tile) -> Any:
      teacher_TxE = jax.lax.dynamic_slice_in_dim(teacher_unembed_VxE, part.start, tile)
      student_RxT = self.spec.student(hidden_RxD, part.unembed_TxD)
      return step(state, part, student_RxT, self.spec.teacher(teacher_hidden_RxE, teacher_TxE))

    return vocabulary.sweep(
      at, state, unembed_VxD, tile=tile, forbidden=self.spec.forbidden, first=held.first
    )
