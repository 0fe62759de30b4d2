"""Passes over vocabulary tiles in XLA, and those of them that find where top-k and top-p cut."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import mass as masses
from kernels_pallas import vocabulary
from kernels_pallas.mass import Mass
from kernels_pallas.token_stats import cut
from kernels_pallas.token_stats.spec import Inputs, StatSpec
from kernels_pallas.vocabulary import Held

Array = jax.Array

# At which a pass measures the mass above. More would save matmuls, but on CPU reading a tile 16
# times already costs a matmul of D = 256.
_VALUES = 16


class Seen(NamedTuple):
  """The logits of one tile; -inf where the id is forbidden or was in an earlier tile."""

  z_RxT: Array
  ids_T: Array
  start: Array | int  # of the tile in the unembedding at hand

  @property
  def eligible_RxT(self) -> Array:
    """What may be chosen: NaN is not."""
    return jnp.where(jnp.isnan(self.z_RxT), -jnp.inf, self.z_RxT)


Sweep = Callable[[Callable[[Any, Seen], Any], Any], Any]  # folds f(state, seen) over tiles


def over_tiles(
  hidden_RxD: Array,
  unembed_VxD: Array,
  held: Held,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  divide_R: Array | None = None,
  allowed_RxU: Array | None = None,
  tile: int | None = None,
) -> Sweep:
  """What folds over the logits, `tile` ids at a time (None: see `vocabulary.tile_size`)."""
  divide_Rx1 = None if divide_R is None else divide_R[:, None]
  tile = vocabulary.tile_size(hidden_RxD, unembed_VxD, tile)

  def sweep(fold: Callable[[Any, Seen], Any], state: Any) -> Any:
    def step(state: Any, part: vocabulary.Tile) -> Any:
      z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, soft_cap, divide_Rx1)
      live_RxT = part.live_T[None, :]
      if allowed_RxU is not None:
        live_RxT &= vocabulary.bits(allowed_RxU, part.ids_T)
      z_RxT = jnp.where(live_RxT, z_RxT, -jnp.inf)
      return fold(state, Seen(z_RxT, part.ids_T, part.start))

    return vocabulary.sweep(
      step, state, unembed_VxD, tile=tile, forbidden=forbidden, first=held.first
    )

  return sweep


def lowest_kept(
  sweep: Sweep, spec: StatSpec, inputs: Inputs, lowest_R: Array, held: Held
) -> Array | None:
  """[R]: the lowest plain logit that top-k and top-p keep; None where they cut nothing.

  One pass with top-k, seven with top-p alone, and of rows with a top-p of their own none while all
  of these are 1. `lowest` is -inf.
  """
  find = functools.partial(_lowest_kept, sweep, spec, inputs, lowest_R, held)
  return cut.if_any(find, spec, inputs, lowest_R, held.total)


def _lowest_kept(
  sweep: Sweep, spec: StatSpec, inputs: Inputs, lowest_R: Array, held: Held
) -> Array:
  share_R = spec.share(inputs, lowest_R.size)
  divisor = spec.divisor(inputs.temperature_Rx1)
  if not 0 < spec.top_k < held.total:
    top1_R = sweep(lambda top_R, seen: jnp.maximum(top_R, seen.eligible_RxT.max(1)), lowest_R)
    top1_R = vocabulary.of_all(jnp.maximum, top1_R, held)

    def above(value_CxR: Array) -> tuple[Array, Array]:
      def add(mass: tuple[Array, Array], seen: Seen) -> tuple[Array, Array]:
        z_RxT = seen.eligible_RxT
        weight_RxT = cut.weight(z_RxT, top1_R, divisor)
        above_CxR = jax.lax.map(
          lambda value_R: jnp.where(z_RxT >= value_R[:, None], weight_RxT, 0).sum(1), value_CxR
        )
        return mass[0] + above_CxR, mass[1] + weight_RxT.sum(1)

      own = sweep(add, (jnp.zeros_like(value_CxR), jnp.zeros_like(top1_R)))
      return vocabulary.of_all(lambda a, b: jax.tree.map(jnp.add, a, b), own, held)

    return cut.top_p_cut(above, _VALUES, top1_R, held.total, share_R, spec.top_p_rule, divisor)
  # Of what top-k keeps the k best tell the mass; that of all ids has to be gathered beside them.
  shares = spec.top_p < 1 or inputs.top_p_R is not None
  of_all = shares and spec.top_p_of == "all"

  def add(state: tuple[cut.KBest, Mass | None], seen: Seen) -> tuple[cut.KBest, Mass | None]:
    best, mass = state
    if of_all:
      mass = masses.merge(mass, masses.of_tile(seen.eligible_RxT / divisor))
    return cut.add_k_best(best, seen.eligible_RxT), mass

  no_mass = masses.empty(lowest_R[:, None]) if of_all else None
  best, mass = sweep(add, (cut.no_best(lowest_R, spec.top_k), no_mass))
  best = vocabulary.of_all(cut.merge_k_best, best, held)
  all_R = vocabulary.of_all(masses.merge, mass, held).sum_Rx1[:, 0] if of_all else None
  if not shares:
    return best.best_RxK[:, -1]
  return cut.top_k_cut(best, share_R, spec.top_p_rule, divisor, all_R)
