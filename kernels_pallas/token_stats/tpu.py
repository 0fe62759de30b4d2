"""The same statistics by a TPU kernel: one pass over the unembedding, no logits outside VMEM."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import vmem, vocabulary
from kernels_pallas.token_stats import tile as tiles
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats
from kernels_pallas.vocabulary import Held

Array = jax.Array

_ALIVE = 8  # arrays of a tile of logits that exist at once: logits, noise, weights and so on


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  inputs: Inputs,
  *,
  held: Held,
  soft_cap: float | None,
  tile: tuple[int, int] | None = None,
) -> TokenStats:
  """See `kernels_pallas.token_stats.token_stats`. `tile`: rows and ids (None: `vmem.tile_sizes`).

  Raises:
    NotImplementedError: top-k or top-p cut, the spec asks for the mean embedding, or the width is
      too large for VMEM.
  """
  if spec.cuts(held.total, inputs):
    # XLA would find it from sums in another order, and the id that it is the logit of might fall
    # just below: with top_k=1 no id would be left.
    raise NotImplementedError("the kernel cannot find where top-k and top-p cut")
  asked = tiles.asked_of_kernel(spec, inputs)
  (rows, width), vocab = hidden_RxD.shape, unembed_VxD.shape[0]

  def empty(rows: int) -> tiles.State:
    lowest_Rx1 = jnp.full((rows, 1), -jnp.inf, jnp.float32)
    first_allowed = vocabulary.first_allowed(held.total, spec.forbidden)
    return tiles.empty(lowest_Rx1, first_allowed, spec, len(asked.gather_J))

  out_shape = jax.eval_shape(functools.partial(empty, rows))

  def nbytes(rows: int, ids: int) -> int:
    operands = 2 * width * (rows * hidden_RxD.dtype.itemsize + ids * unembed_VxD.dtype.itemsize)
    columns = len(jax.tree.leaves((asked, out_shape)))
    return operands + _ALIVE * 4 * rows * ids + vmem.columns(rows, columns)

  tile_rows, tile_ids = tile or vmem.tile_sizes(rows, vocab, nbytes)
  column = pl.BlockSpec((tile_rows, 1), lambda r, v: (r, 0))

  def kernel(first_ref, hidden_ref, unembed_ref, asked_refs, state_refs):
    """Adds a tile of ids to the state of a tile of rows, whose block stays in VMEM meanwhile."""

    @pl.when(pl.program_id(1) == 0)
    def _():
      vmem.store(state_refs, empty(tile_rows))

    start = first_ref[0] + pl.program_id(1) * tile_ids
    ids_1xT = start + jax.lax.broadcasted_iota(jnp.int32, (1, tile_ids), 1)
    asked = vmem.load(asked_refs)
    z_RxT = vocabulary.logits(hidden_ref[...], unembed_ref[...], soft_cap, asked.divide_Rx1)
    end = first_ref[0] + vocab
    found = tiles.of_tile(z_RxT, ids_1xT, start, asked, spec, end)
    vmem.store(state_refs, tiles.merge(vmem.load(state_refs), found))

  with jax.enable_x64(False):  # else index maps are int64, which do not compile
    (state,) = pl.pallas_call(
      kernel,
      grid=(pl.cdiv(rows, tile_rows), pl.cdiv(vocab, tile_ids)),
      in_specs=[
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((tile_rows, width), lambda r, v: (r, 0)),
        pl.BlockSpec((tile_ids, width), lambda r, v: (v, 0)),
        jax.tree.map(lambda _: column, asked),
      ],
      out_specs=(jax.tree.map(lambda _: column, out_shape),),
      out_shape=(out_shape,),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem.LIMIT_BYTES
      ),
      name="token_stats",
    )(jnp.full(1, held.first, jnp.int32), hidden_RxD, unembed_VxD, asked)
  return tiles.result(vocabulary.of_all(tiles.merge, state, held))
