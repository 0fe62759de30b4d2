"""Where top-k and top-p cut: the lowest logit that stays, without sorting the vocabulary.

Both are exact about ties: equal logits stay or go together. Logits here are never NaN, and those of
forbidden ids are -inf.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.mass import finite
from kernels_pallas.token_stats.spec import Inputs, StatSpec

Array = jax.Array

# Of values [C, R]: how much the ids at or above each of them weigh, [C, R], and all ids, [R].
Above = Callable[[Array], tuple[Array, Array]]

# Passes leave 2^-24 of the interval in which the cut lies, and it is
# temperature * log(V / (1 - top_p)) wide: what float32 probabilities cannot tell apart.
_BITS = 24


class KBest(NamedTuple):
  best_RxK: Array  # the k best logits so far, descending
  more_R: Array  # float32: how many others equal the last of them


def no_best(lowest_R: Array, k: int) -> KBest:
  """Before the first tile; `lowest` is -inf."""
  best_RxK = jnp.broadcast_to(lowest_R[:, None], (lowest_R.shape[0], k))
  return KBest(best_RxK, jnp.zeros_like(lowest_R))


def add_k_best(kept: KBest, z_RxT: Array) -> KBest:
  """The k best of those and of a tile."""
  k = kept.best_RxK.shape[1]
  pool_RxN = jnp.concatenate([kept.best_RxK, z_RxT], axis=1)
  best_RxK = jax.lax.top_k(pool_RxN, k)[0]
  last_Rx1 = best_RxK[:, -1:]
  left_R = (pool_RxN == last_Rx1).sum(1) - (best_RxK == last_Rx1).sum(1)
  still_R = kept.best_RxK[:, -1] == last_Rx1[:, 0]
  return KBest(best_RxK, left_R.astype(jnp.float32) + jnp.where(still_R, kept.more_R, 0))


def merge_k_best(a: KBest, b: KBest) -> KBest:
  """The k best of both."""
  k = a.best_RxK.shape[1]
  best_RxK = jax.lax.top_k(jnp.concatenate([a.best_RxK, b.best_RxK], axis=1), k)[0]
  last_Rx1 = best_RxK[:, -1:]

  def equal_R(kept: KBest) -> Array:
    more_R = jnp.where(kept.best_RxK[:, -1] == last_Rx1[:, 0], kept.more_R, 0)
    return (kept.best_RxK == last_Rx1).sum(1) + more_R

  return KBest(best_RxK, equal_R(a) + equal_R(b) - (best_RxK == last_Rx1).sum(1))


def top_k_cut(
  kept: KBest, share_R: Array, rule: str, divisor: float | Array, all_R: Array | None
) -> Array:
  """[R]: the k-th best logit, or where top-p cuts among the ids that reach it.

  Args:
    share_R: top-p; 1: it cuts nothing.
    rule: `StatSpec.top_p_rule`.
    divisor: a number, or [R, 1].
    all_R: the mass of which top-p is a share, that of the best id being 1; None: what top-k keeps.
  """
  best_RxK = kept.best_RxK
  weight_RxK = weight(best_RxK, best_RxK[:, 0], divisor)
  sum_RxK = jnp.cumsum(weight_RxK, axis=1)
  kept_R = sum_RxK[:, -1] + kept.more_R * weight_RxK[:, -1]
  most_R = share_R * (kept_R if all_R is None else all_R)
  needed_RxK = sum_RxK - weight_RxK < most_R[:, None]
  if rule == "within":
    over_RxK = (sum_RxK > most_R[:, None]).at[:, -1].set(kept_R > most_R)
    barrier_Rx1 = jnp.where(over_RxK, best_RxK, -jnp.inf).max(1, keepdims=True)
    needed_RxK = (best_RxK > barrier_Rx1) | (best_RxK == best_RxK[:, :1])
  lowest_R = jnp.where(needed_RxK, best_RxK, jnp.inf).min(1)
  return jnp.where(share_R < 1, lowest_R, best_RxK[:, -1])


def top_p_cut(
  above: Above,
  values: int,
  top1_R: Array,
  vocab: int,
  share_R: Array,
  rule: str,
  divisor: float | Array,
) -> Array:
  """[R]: a value that parts the set of best ids that top-p keeps from the others; -inf for 1.

  Starts from an interval that holds it (all mass below its lower end is less than 1 - top_p) and
  measures the mass above so many values in it at once, again and again. A fixed number of passes:
  devices that share a collective must run the same loop.
  """
  within = rule == "within"
  cuts_R = share_R < 1
  share_R = jnp.where(cuts_R, share_R, 0.5)  # some number that leaves no NaN
  high_R = finite(top1_R)
  low_R = high_R + jnp.ravel(divisor) * jnp.log((1 - share_R) / vocab)

  def narrow(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    value_CxR = _between(*bounds, values)
    above_CxR, total_R = above(value_CxR)
    most_1xR = (share_R * total_R)[None, :]
    return _narrowed(bounds, value_CxR, above_CxR > most_1xR if within else above_CxR >= most_1xR)

  passes = math.ceil(_BITS / math.log2(values))
  low_R, high_R = jax.lax.fori_loop(0, passes, narrow, (low_R, high_R))
  return jnp.where(cuts_R, high_R if within else low_R, -jnp.inf)


def k_best_cut(above: Above, values: int, top1_R: Array, low_R: Array, k: int) -> Array:
  """[R]: a value that parts the k best ids, and those that equal the last of them, from the others.

  For whoever can count ids and not keep the best. Ends where exactly k ids reach the value, or the
  interval cannot be narrowed any more: after a few passes, unless logits are equal.

  Args:
    above: with a weight of 1 for each id.
    low_R: at least k ids reach it; finite, as `top1` is.
  """

  def narrow(state: tuple[Array, ...]) -> tuple[Array, ...]:
    old_low_R, old_high_R, found_R = state
    value_CxR = _between(old_low_R, old_high_R, values)
    count_CxR, _ = above(value_CxR)
    low_R, high_R = _narrowed((old_low_R, old_high_R), value_CxR, count_CxR >= k)
    narrower_R = (low_R > old_low_R) | (high_R < old_high_R)
    return low_R, high_R, found_R | (count_CxR == k).any(0) | ~narrower_R

  state = low_R, top1_R, low_R == top1_R
  return jax.lax.while_loop(lambda state: ~state[2].all(), narrow, state)[0]


def _between(low_R: Array, high_R: Array, values: int) -> Array:
  """[C, R]: above `low`, equally far from each other, and the last of them exactly `high`."""
  step_C = jnp.arange(values, dtype=jnp.float32)[::-1] / values
  return high_R[None, :] - (high_R - low_R)[None, :] * step_C[:, None]


def _narrowed(
  bounds: tuple[Array, Array], value_CxR: Array, below_CxR: Array
) -> tuple[Array, Array]:
  """From the highest value that is below the cut to the lowest that is not."""
  low_R, high_R = bounds
  low_R = jnp.where(below_CxR, value_CxR, low_R[None, :]).max(0)
  return low_R, jnp.where(below_CxR, high_R[None, :], value_CxR).min(0)


def if_any(
  find: Callable[[], Array], spec: StatSpec, inputs: Inputs, lowest_R: Array, total: int
) -> Array | None:
  """`find()`, the lowest plain logits that top-k and top-p keep; None where they cut nothing.

  Of rows with a top-p of their own -inf, `lowest`, while all of these are 1.
  """
  if not spec.cuts(total, inputs):
    return None
  if inputs.top_p_R is None or 0 < spec.top_k < total:
    return find()
  return jax.lax.cond((inputs.top_p_R < 1).any(), find, lambda: lowest_R)


def weight(z_RxT: Array, top1_R: Array, temperature: float | Array) -> Array:
  """Tempered probability of each id, over that of the best."""
  return jnp.exp((z_RxT - finite(top1_R)[:, None]) / temperature)
