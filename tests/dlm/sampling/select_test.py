"""Ranks and selections, with ties, NaN and ineligible positions."""

import jax.numpy as jnp
import numpy as np

from dlm.sampling import select

SCORE = jnp.array([[0.5, 0.9, 0.9, jnp.nan, 0.1], [-jnp.inf, 0.2, 0.3, 0.4, 0.5]])
ELIGIBLE = jnp.array([[True, True, True, True, False], [True, False, False, False, False]])


def test_rank_breaks_ties_to_the_left_and_puts_nan_and_ineligible_last():
  rank = select.rank(SCORE, ELIGIBLE)
  assert rank[0].tolist() == [2, 0, 1, 3, 4]
  assert int(rank[1, 0]) == 0, "an eligible -inf still ranks before every ineligible position"


def test_top_never_takes_more_than_is_eligible():
  np.testing.assert_array_equal(
    select.top(SCORE, ELIGIBLE, jnp.array([2, 3])),
    [[False, True, True, False, False], [True, False, False, False, False]],
  )
  assert not select.top(SCORE, ELIGIBLE, jnp.array([0, 0])).any()


def test_at_least_always_takes_the_best():
  taken = select.at_least(SCORE, ELIGIBLE, 0.95)
  assert taken.tolist() == [[False, True, False, False, False], [True, False, False, False, False]]
  assert not select.at_least(SCORE, jnp.zeros_like(ELIGIBLE), 0.0).any()
