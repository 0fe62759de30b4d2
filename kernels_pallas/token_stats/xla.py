"""The same statistics in passes over vocabulary tiles: no [R, V] array exists. Any XLA backend.

One pass, and where something is cut those of `passes.lowest_kept` before it.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats import folds, passes
from kernels_pallas.token_stats.folds import Candidate, Seen, Stats
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats

Array = jax.Array


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
  vocab = unembed_VxD.shape[0]
  sweep = passes.over_tiles(
    hidden_RxD, unembed_VxD, forbidden=spec.forbidden, soft_cap=soft_cap, tile=tile
  )
  lowest_R = jnp.full_like(hidden_RxD[:, 0], -jnp.inf, dtype=jnp.float32)
  cut_R = passes.lowest_kept(sweep, spec, lowest_R, vocab)

  def add(found: tuple[Candidate, Stats], seen: Seen) -> tuple[Candidate, Stats]:
    candidate, stats = found
    shaped = seen.shaped(spec.divisor, cut_R)
    told = shaped if spec.shaped else seen
    candidate = folds.add_candidate(candidate, shaped, told, inputs.key_data_Rx2)
    return candidate, folds.add_stats(stats, told, spec, inputs)

  fallback = vocabulary.first_allowed(vocab, spec.forbidden)
  nothing = folds.no_candidate(lowest_R, fallback), folds.no_stats(lowest_R, spec, inputs)
  return _result(*sweep(add, nothing))


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
