"""The same statistics in passes over vocabulary tiles: no [R, V] array exists. Any XLA backend.

One pass, and where something is cut those of `passes.lowest_kept` before it.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats import passes
from kernels_pallas.token_stats import tile as tiles
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats
from kernels_pallas.vocabulary import Held

Array = jax.Array


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  inputs: Inputs,
  *,
  held: Held,
  soft_cap: float | None,
  tile: int | None = None,
) -> TokenStats:
  """See `kernels_pallas.token_stats.token_stats`. `tile`: ids at a time (None: see `tile_size`)."""
  sweep = passes.over_tiles(
    hidden_RxD,
    unembed_VxD,
    held,
    forbidden=spec.forbidden,
    soft_cap=soft_cap,
    divide_R=inputs.divide_R,
    allowed_RxU=inputs.allowed_RxU,
    tile=tile,
  )
  lowest_R = jnp.full_like(hidden_RxD[:, 0], -jnp.inf, dtype=jnp.float32)
  asked = tiles.asked(spec, inputs, passes.lowest_kept(sweep, spec, inputs, lowest_R, held))
  end = held.first + unembed_VxD.shape[0]

  def add(state: tiles.State, seen: passes.Seen) -> tiles.State:
    embed_TxD = None
    if spec.soft:
      embed_TxD = jax.lax.dynamic_slice_in_dim(inputs.embed_VxD, seen.start, seen.ids_T.size)
    found = tiles.of_tile(
      seen.z_RxT, seen.ids_T[None, :], seen.ids_T[0], asked, spec, end, embed_TxD
    )
    return tiles.merge(state, found)

  state = sweep(
    add,
    tiles.empty(
      lowest_R[:, None],
      vocabulary.first_allowed(held.total, spec.forbidden),
      spec,
      len(asked.gather_J),
      inputs.embed_VxD.shape[1] if spec.soft else 0,
    ),
  )
  return tiles.result(vocabulary.of_all(tiles.merge, state, held))
