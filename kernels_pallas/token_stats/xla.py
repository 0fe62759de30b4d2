"""The same statistics in passes over vocabulary tiles: no [R, V] array exists. Any XLA backend.

One pass where nothing is cut. With top-k a pass before it finds the cut, with top-p alone seven.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats import cut, folds
from kernels_pallas.token_stats.folds import Candidate, Mass, Seen, Stats
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats

Array = jax.Array
Sweep = Callable[[Callable[[Any, Seen], Any], Any], Any]  # folds f(state, seen) over tiles


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  inputs: Inputs,
  *,
  soft_cap: float | None,
  tile: int | None = None,
) -> TokenStats:
  """See `kernels_pallas.token_stats.token_stats`. `tile`: ids at a time (None: see `tile_size`)."""
  rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
  tile = min(tile or vocabulary.tile_size(rows, vocab), vocab)

  def sweep(fold: Callable[[Any, Seen], Any], state: Any) -> Any:
    def step(state: Any, part: vocabulary.Tile) -> Any:
      z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, soft_cap)
      z_RxT = jnp.where(part.live_T[None, :], z_RxT, -jnp.inf)
      eligible_RxT = jnp.where(jnp.isnan(z_RxT), -jnp.inf, z_RxT)
      return fold(state, Seen(z_RxT, z_RxT, eligible_RxT, part.ids_T))

    return vocabulary.sweep(step, state, unembed_VxD, tile=tile, forbidden=spec.forbidden)

  lowest_R = jnp.full_like(hidden_RxD[:, 0], -jnp.inf, dtype=jnp.float32)
  cut_R = _cut(sweep, spec, lowest_R, vocab) if spec.cuts(vocab) else None

  def add(found: tuple[Candidate, Stats], seen: Seen) -> tuple[Candidate, Stats]:
    candidate, stats = found
    shaped = seen.shaped(spec.divisor, cut_R)
    told = shaped if spec.shaped else seen
    candidate = folds.add_candidate(candidate, shaped, told, inputs.key_data_Rx2)
    return candidate, folds.add_stats(stats, told, spec, inputs)

  fallback = vocabulary.first_allowed(vocab, spec.forbidden)
  nothing = folds.no_candidate(lowest_R, fallback), folds.no_stats(lowest_R, spec, inputs)
  return _result(*sweep(add, nothing))


def _cut(sweep: Sweep, spec: StatSpec, lowest_R: Array, vocab: int) -> Array:
  """[R]: the lowest plain logit that top-k and top-p keep."""
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


def _result(candidate: Candidate, stats: Stats) -> TokenStats:
  lse_R, entropy_R, soft_RxD = stats.mass.lse(), stats.entropy_R, stats.soft_RxD
  defined_R = jnp.isfinite(lse_R)
  if entropy_R is not None:
    entropy_R = jnp.where(defined_R, entropy_R, jnp.nan)
  if soft_RxD is not None:
    soft_RxD = jnp.where(defined_R[:, None], soft_RxD, jnp.nan)
  return TokenStats(
    token=candidate.token_R,
    logit=candidate.logit_R,
    top1=stats.mass.top1_R,
    lse=lse_R,
    top2=stats.top2_R,
    entropy=entropy_R,
    current=stats.current_R,
    lse_outside=stats.outside.lse() if stats.outside is not None else None,
    soft=soft_RxD,
    gathered=stats.gathered_RxJ,
  )
