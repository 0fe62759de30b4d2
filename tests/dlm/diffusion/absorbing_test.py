"""Absorbing corruption."""

import jax.numpy as jnp
import numpy as np

from dlm.diffusion import absorbing


def test_masked_tokens_become_the_mask_id():
  got = absorbing.mask_out(jnp.array([[1, 2, 3]]), jnp.array([[True, False, True]]), 9)
  np.testing.assert_array_equal(got, [[9, 2, 9]])


def test_lowest_takes_exactly_as_many_as_asked():
  score = jnp.array([[0.3, 0.1, 0.2, 0.0], [0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]])
  among = jnp.array([[True, True, True, False], [True] * 4, [False] * 4])
  got = absorbing.lowest(score, among, jnp.array([2, 3, 2]))
  np.testing.assert_array_equal(got, [[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
