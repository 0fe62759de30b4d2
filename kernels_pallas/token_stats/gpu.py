"""The same statistics by a kernel for Hopper: logits are in registers and nowhere else.

Each worker of `hopper.walk` adds its tiles of logits to the state of its rows, and XLA merges the
states of all parts of the vocabulary. Where top-k and top-p cut, `gpu_cut` finds out before, in
passes of the same kind. No GPU has run this yet: it is interpreted and compiled in tests.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas import hopper, vocabulary
from kernels_pallas.token_stats import gpu_cut, gpu_fold
from kernels_pallas.token_stats import tile as tiles
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats
from kernels_pallas.vocabulary import Held

Array = jax.Array

_LANES = 32  # ids that are added at once: what is computed of more would not fit beside the logits
_MAX_GATHERED = 4  # ids a row; each costs some instructions a logit


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  inputs: Inputs,
  *,
  held: Held,
  soft_cap: float | None,
  tiling: hopper.Tiling | None = None,
) -> TokenStats:
  """See `kernels_pallas.token_stats.token_stats`. `tiling`: None is `hopper.tiling_for`.

  Raises:
    NotImplementedError: not bfloat16, sizes that the hardware's copies cannot cut, or a spec with
      mean embeddings, many gathered ids or a temperature per row.
  """
  rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
  if spec.per_row:
    raise NotImplementedError("the kernel knows one temperature for all rows")
  columns = jax.tree.map(lambda x_Rx1: x_Rx1[:, 0], tiles.asked_of_kernel(spec, inputs))
  hopper.check(hidden_RxD, unembed_VxD)
  if len(columns.gather_J) > _MAX_GATHERED:
    raise NotImplementedError(
      f"{len(columns.gather_J)} gathered ids a row are more than {_MAX_GATHERED}"
    )
  fallback = vocabulary.first_allowed(held.total, spec.forbidden)
  lowest_R = jnp.full(rows, -jnp.inf, jnp.float32)
  first_R = jnp.full(rows, held.first, jnp.int32)

  def empty() -> tiles.State:
    lowest_R = jnp.full(hopper.ROWS, -jnp.inf, jnp.float32)
    return tiles.empty(lowest_R, fallback, spec, len(columns.gather_J))

  if tiling is None:  # one for all passes: equal logits in each
    beside = hopper.columns(first_R, columns, jax.eval_shape(empty))
    if spec.cuts(held.total, inputs):
      beside = max(beside + hopper.columns(lowest_R), hopper.columns((first_R,) * gpu_cut.COLUMNS))
    tiling = hopper.tiling_for(rows, vocab, beside=beside)
  hopper.check_tiling(tiling, vocab)
  padded_RxD = hopper.padded(tiling, hidden_RxD)

  def fold(empty: Callable[[], Any], add: Callable[..., Any], columns: Any, lanes: int) -> Any:
    """See `gpu_cut.Fold`."""

    def add_tile(state: Any, z_RxT: Array, offset_RxT: Array, begin: Array, asked: Any) -> Any:
      first_R, divide_R, columns = asked
      if soft_cap is not None:
        z_RxT = soft_cap * jnp.tanh(z_RxT / soft_cap)
      if divide_R is not None:
        z_RxT /= hopper.wide(divide_R, z_RxT)
      z_RxT = jnp.where(offset_RxT >= begin, z_RxT, -jnp.inf)
      return add(state, z_RxT, offset_RxT + hopper.wide(first_R, offset_RxT), columns)

    asked = jax.tree.map(
      lambda x_R: hopper.padded(tiling, x_R), (first_R, inputs.divide_R, columns)
    )
    parts = hopper.fold(tiling, padded_RxD, unembed_VxD, asked, empty, add_tile, lanes)
    return jax.tree.map(lambda x_PxR: x_PxR[:, :rows], parts)

  def add(state: tiles.State, z_RxT: Array, ids_RxT: Array, columns: tiles.Asked) -> tiles.State:
    return gpu_fold.add(state, z_RxT, ids_RxT, columns, spec)

  cut_R = gpu_cut.lowest_kept(fold, spec, inputs, lowest_R, held)
  parts = fold(empty, add, columns._replace(cut_Rx1=cut_R, divide_Rx1=None), _LANES)
  return tiles.result(vocabulary.of_all(tiles.merge, gpu_fold.merge(parts), held))
