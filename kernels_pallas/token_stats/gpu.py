"""The same statistics in one kernel for Hopper: logits are in registers and nowhere else.

Each worker of `hopper.walk` adds its tiles of logits to the state of its rows, and XLA merges the
states of all parts of the vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas import hopper, vocabulary
from kernels_pallas.token_stats import gpu_fold
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
      top-k, top-p, mean embeddings, many gathered ids or a temperature per row.
  """
  rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
  if spec.per_row:
    raise NotImplementedError("the kernel knows one temperature for all rows")
  columns = tiles.asked_of_one_pass(spec, inputs, held.total)
  hopper.check(hidden_RxD, unembed_VxD)
  if len(columns.gather_J) > _MAX_GATHERED:
    raise NotImplementedError(
      f"{len(columns.gather_J)} gathered ids a row are more than {_MAX_GATHERED}"
    )
  first_R = jnp.full(rows, held.first, jnp.int32)
  asked = first_R, jax.tree.map(lambda x_Rx1: x_Rx1[:, 0], columns)
  fallback = vocabulary.first_allowed(held.total, spec.forbidden)

  def empty() -> tiles.State:
    lowest_R = jnp.full(hopper.ROWS, -jnp.inf, jnp.float32)
    return tiles.empty(lowest_R, fallback, spec, len(columns.gather_J))

  def add(state: tiles.State, z_RxT: Array, offset_RxT: Array, begin: Array, asked: Any):
    first_R, columns = asked
    if soft_cap is not None:
      z_RxT = soft_cap * jnp.tanh(z_RxT / soft_cap)
    if columns.divide_Rx1 is not None:
      z_RxT /= hopper.wide(columns.divide_Rx1, z_RxT)
    z_RxT = jnp.where(offset_RxT >= begin, z_RxT, -jnp.inf)
    ids_RxT = offset_RxT + hopper.wide(first_R, offset_RxT)
    return gpu_fold.add(state, z_RxT, ids_RxT, columns, spec)

  if tiling is None:
    beside = hopper.columns(asked, jax.eval_shape(empty))
    tiling = hopper.tiling_for(rows, vocab, beside=beside)
  hopper.check_tiling(tiling, vocab)
  hidden_RxD, asked = jax.tree.map(lambda x: hopper.padded(tiling, x), (hidden_RxD, asked))
  parts = hopper.fold(tiling, hidden_RxD, unembed_VxD, asked, empty, add, _LANES)
  state = gpu_fold.merge(jax.tree.map(lambda x_PxR: x_PxR[:, :rows], parts))
  return tiles.result(vocabulary.of_all(tiles.merge, state, held))
