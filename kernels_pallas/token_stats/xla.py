"""The same statistics in passes over vocabulary tiles: no [R, V] array exists. Any XLA backend.

One pass where the candidate needs no cut, two with top-k, eight with top-p alone (see `cut`).
Tiles merge in the order of their ids, and a later one must be strictly better: ties go to the
lowest id.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats import cut
from kernels_pallas.token_stats.cut import finite
from kernels_pallas.token_stats.noise import gumbel
from kernels_pallas.token_stats.spec import StatSpec, TokenStats

Array = jax.Array


class Seen(NamedTuple):
  """The logits of one tile."""

  z_RxT: Array  # plain; -inf where the id is forbidden or was in an earlier tile
  eligible_RxT: Array  # the same, NaN as -inf: what may be chosen
  ids_T: Array


class Plain(NamedTuple):
  """Statistics of the plain logits of the ids so far."""

  top1_R: Array
  log_mass_R: Array  # logsumexp of (logit - finite(top1)): differences stay exact at any scale
  top2_R: Array | None
  entropy_R: Array | None
  current_R: Array | None


class Candidate(NamedTuple):
  """The best score so far (noisy where the candidate is drawn), whose it is, and its logit."""

  score_R: Array
  token_R: Array
  logit_R: Array


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  *,
  current_R: Array | None,
  key_data_Rx2: Array | None,
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
      return fold(state, Seen(z_RxT, eligible_RxT, part.ids_T))

    return vocabulary.sweep(step, state, unembed_VxD, tile=tile, forbidden=spec.forbidden)

  def add_plain(plain: Plain, seen: Seen) -> Plain:
    return _add_plain(plain, seen, spec, current_R)

  def add_candidate(found: Candidate, seen: Seen, cut_R: Array | None = None) -> Candidate:
    return _add_candidate(found, seen, spec.temperature, key_data_Rx2, cut_R)

  lowest_R = jnp.full_like(hidden_RxD[:, 0], -jnp.inf, dtype=jnp.float32)
  nothing = _nothing(lowest_R, spec, vocab)
  k = spec.top_k if spec.top_k < vocab else 0
  if spec.temperature == 0 or (k == 0 and spec.top_p == 1):
    plain, found = sweep(_both(add_plain, add_candidate), nothing)
    return _result(plain, found)

  if k:
    add_best = _both(add_plain, lambda best, seen: cut.add_k_best(best, seen.eligible_RxT))
    plain, best = sweep(add_best, (nothing[0], cut.no_best(lowest_R, k)))
    cut_R = cut.top_k_cut(best, spec.top_p, spec.temperature)
  else:
    plain = sweep(add_plain, nothing[0])
    cut_R = cut.top_p_cut(
      lambda fold, state: sweep(lambda state, seen: fold(state, seen.eligible_RxT), state),
      plain.top1_R,
      vocab,
      spec.top_p,
      spec.temperature,
    )
  return _result(plain, sweep(lambda *so_far: add_candidate(*so_far, cut_R), nothing[1]))


def _both(first: Callable[[Any, Seen], Any], second: Callable[[Any, Seen], Any]) -> Callable:
  """Two folds in one pass."""
  return lambda state, seen: (first(state[0], seen), second(state[1], seen))


def _nothing(lowest_R: Array, spec: StatSpec, vocab: int) -> tuple[Plain, Candidate]:
  """Before the first tile. The candidate of a row without any finite logit stays this one."""
  plain = Plain(
    top1_R=lowest_R,
    log_mass_R=lowest_R,
    top2_R=lowest_R if spec.top2 else None,
    entropy_R=jnp.zeros_like(lowest_R) if spec.entropy else None,
    current_R=lowest_R if spec.current else None,
  )
  token = vocabulary.first_allowed(vocab, spec.forbidden)
  token_R = jnp.full_like(lowest_R, token, dtype=jnp.int32)
  return plain, Candidate(lowest_R, token_R, lowest_R)


def _add_plain(plain: Plain, seen: Seen, spec: StatSpec, current_R: Array | None) -> Plain:
  tile_top1_R = seen.eligible_RxT.max(1)
  top1_R = jnp.maximum(plain.top1_R, tile_top1_R)
  shift_R, tile_shift_R = finite(top1_R), finite(tile_top1_R)
  relative_RxT = seen.z_RxT - tile_shift_R[:, None]
  tile_log_mass_R = jnp.log(jnp.exp(relative_RxT).sum(1))
  log_old_R = plain.log_mass_R + (finite(plain.top1_R) - shift_R)
  log_new_R = tile_log_mass_R + (tile_shift_R - shift_R)
  log_mass_R = jnp.logaddexp(log_old_R, log_new_R)
  top2_R = entropy_R = logit_R = None
  if spec.top2:
    tile_top2_R = _second(seen.eligible_RxT, tile_top1_R)
    top2_R = jnp.maximum(
      jnp.minimum(plain.top1_R, tile_top1_R), jnp.maximum(plain.top2_R, tile_top2_R)
    )
  if spec.entropy:
    log_p_RxT = relative_RxT - tile_log_mass_R[:, None]
    tile_entropy_R = -_expect(log_p_RxT, log_p_RxT).sum(1)
    # Entropy of a mixture: that of the choice of tile, plus the mean of those within tiles.
    log_old_R, log_new_R = log_old_R - log_mass_R, log_new_R - log_mass_R
    entropy_R = _expect(log_old_R, plain.entropy_R - log_old_R)
    entropy_R += _expect(log_new_R, tile_entropy_R - log_new_R)
  if spec.current:
    inside_R, logit_R = vocabulary.at_id(seen.z_RxT, current_R, seen.ids_T[0])
    # A clamped last tile meets some ids again, and there they are -inf.
    logit_R = jnp.where(inside_R & (logit_R != -jnp.inf), logit_R, plain.current_R)
  return Plain(top1_R, log_mass_R, top2_R, entropy_R, logit_R)


def _second(z_RxT: Array, best_R: Array) -> Array:
  """The second best, which equals the best where two ids share it."""
  best_RxT = z_RxT == best_R[:, None]
  second_R = jnp.where(best_RxT, -jnp.inf, z_RxT).max(1)
  return jnp.where(best_RxT.sum(1) > 1, best_R, second_R)


def _expect(log_p: Array, value: Array) -> Array:
  """p * value, and 0 where p is 0 (or undefined), whatever the value is."""
  p = jnp.exp(log_p)
  return jnp.where(p > 0, p * value, 0)


def _add_candidate(
  found: Candidate,
  seen: Seen,
  temperature: float,
  key_data_Rx2: Array | None,
  cut_R: Array | None,
) -> Candidate:
  score_RxT = seen.eligible_RxT
  if temperature > 0:
    score_RxT = score_RxT / temperature + gumbel(key_data_Rx2, seen.ids_T)
  if cut_R is not None:
    score_RxT = jnp.where(seen.eligible_RxT >= cut_R[:, None], score_RxT, -jnp.inf)
  index_R = jnp.argmax(score_RxT, axis=1)
  score_R = jnp.take_along_axis(score_RxT, index_R[:, None], axis=1)[:, 0]
  logit_R = jnp.take_along_axis(seen.eligible_RxT, index_R[:, None], axis=1)[:, 0]
  better_R = score_R > found.score_R
  return Candidate(
    score_R=jnp.where(better_R, score_R, found.score_R),
    token_R=jnp.where(better_R, seen.ids_T[index_R], found.token_R),
    logit_R=jnp.where(better_R, logit_R, found.logit_R),
  )


def _result(plain: Plain, found: Candidate) -> TokenStats:
  lse_R, entropy_R = finite(plain.top1_R) + plain.log_mass_R, plain.entropy_R
  if entropy_R is not None:
    entropy_R = jnp.where(jnp.isfinite(lse_R), entropy_R, jnp.nan)
  return TokenStats(
    token=found.token_R,
    logit=found.logit_R,
    top1=plain.top1_R,
    lse=lse_R,
    top2=plain.top2_R,
    entropy=entropy_R,
    current=plain.current_R,
  )
