"""Choosing positions of a block, row by row. Ties go to the lowest slot; NaN scores rank last."""

import jax.numpy as jnp

from dlm.types import Array


def rank(score_BxA: Array, eligible_BxA: Array) -> Array:
  """0 for the best eligible position, 1 for the next, ...; ineligible ones rank last."""
  score_BxA = jnp.where(jnp.isnan(score_BxA), -jnp.inf, score_BxA)
  # Ineligible positions sort behind an eligible -inf: two keys, the first of them eligibility.
  order_BxA = jnp.lexsort((-score_BxA, ~eligible_BxA), axis=-1)
  return jnp.argsort(order_BxA, axis=-1)


def top(score_BxA: Array, eligible_BxA: Array, k_B: Array) -> Array:
  """The `k` best eligible positions of each row; all of them where fewer are eligible."""
  return eligible_BxA & (rank(score_BxA, eligible_BxA) < k_B[:, None])


def at_least(
  score_BxA: Array, eligible_BxA: Array, threshold: float | Array, band: float = 0.0
) -> Array:
  """Eligible positions with `score >= threshold`, and always the best one.

  threshold: one for all, or [B, 1]. With `band` those less than it below the best go with it.
  """
  taken_BxA = (score_BxA >= threshold) | (rank(score_BxA, eligible_BxA) == 0)
  if band:
    best_Bx1 = jnp.where(eligible_BxA, score_BxA, -jnp.inf).max(-1, keepdims=True)
    taken_BxA |= score_BxA >= best_Bx1 - band
  return eligible_BxA & taken_BxA


def above_or_top(score_BxA: Array, eligible_BxA: Array, threshold: float, least_B: Array) -> Array:
  """Eligible positions with `score > threshold` if those are `least` or more, else the best."""
  above_BxA = eligible_BxA & (score_BxA > threshold)
  enough_Bx1 = above_BxA.sum(-1, keepdims=True) >= least_B[:, None]
  return jnp.where(enough_Bx1, above_BxA, top(score_BxA, eligible_BxA, least_B))


def falling(threshold: float | Array, decay: float, turn_B: Array) -> float | Array:
  """A threshold that falls from 1 by `decay` a forward of the row; decay 0: constant.

  threshold: one for all, or [B]. Returns one for all, or [B, 1].
  """
  if decay:
    threshold = jnp.maximum(1 - decay * turn_B, threshold)
  return threshold[:, None] if jnp.ndim(threshold) else threshold
