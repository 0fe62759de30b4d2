"""Passes over vocabulary tiles in XLA, and those of them that find where top-k and top-p cut."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats import cut, folds
from kernels_pallas.token_stats.folds import Mass, Seen
from kernels_pallas.token_stats.spec import StatSpec

Array = jax.Array
Sweep = Callable[[Callable[[Any, Seen], Any], Any], Any]  # folds f(state, seen) over tiles


def over_tiles(
  hidden_RxD: Array,
  unembed_VxD: Array,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tile: int | None = None,
) -> Sweep:
  """What folds over the logits, `tile` ids at a time (None: see `vocabulary.tile_size`)."""
  rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
  tile = min(tile or vocabulary.tile_size(rows, vocab), vocab)

  def sweep(fold: Callable[[Any, Seen], Any], state: Any) -> Any:
    def step(state: Any, part: vocabulary.Tile) -> Any:
      z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, soft_cap)
      z_RxT = jnp.where(part.live_T[None, :], z_RxT, -jnp.inf)
      eligible_RxT = jnp.where(jnp.isnan(z_RxT), -jnp.inf, z_RxT)
      return fold(state, Seen(z_RxT, z_RxT, eligible_RxT, part.ids_T))

    return vocabulary.sweep(step, state, unembed_VxD, tile=tile, forbidden=forbidden)

  return sweep


def lowest_kept(sweep: Sweep, spec: StatSpec, lowest_R: Array, vocab: int) -> Array | None:
  """[R]: the lowest plain logit that top-k and top-p keep; None where they cut nothing.

  One pass with top-k, seven with top-p alone. `lowest` is -inf.
  """
  if not spec.cuts(vocab):
    return None
  if not 0 < spec.top_k < vocab:
    top1_R = sweep(lambda top_R, seen: jnp.maximum(top_R, seen.eligible_RxT.max(1)), lowest_R)
    return cut.top_p_cut(
      lambda fold, state: sweep(lambda state, seen: fold(state, seen.eligible_RxT), state),
      top1_R,
      vocab,
      spec,
    )
  # Of what top-k keeps the k best tell the mass; that of all ids has to be gathered beside them.
  of_all = spec.top_p < 1 and spec.top_p_of == "all"

  def add(state: tuple[cut.KBest, Mass | None], seen: Seen) -> tuple[cut.KBest, Mass | None]:
    best, mass = state
    if of_all:
      tempered_RxT = seen.eligible_RxT / spec.divisor
      mass = folds.add_mass(mass, seen._replace(z_RxT=tempered_RxT, eligible_RxT=tempered_RxT))
    return cut.add_k_best(best, seen.eligible_RxT), mass

  no_mass = Mass(lowest_R, lowest_R) if of_all else None
  best, mass = sweep(add, (cut.no_best(lowest_R, spec.top_k), no_mass))
  all_R = jnp.exp(mass.log_R) if of_all else None
  return cut.top_k_cut(best, spec, all_R)
