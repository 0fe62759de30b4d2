"""Uniform states: ids that noise puts, and Duo's link from Gaussian diffusion to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from dlm.diffusion import uniform


@pytest.mark.parametrize(("mask_id", "ids"), [(2, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])])
def test_noise_never_puts_the_mask_id(mask_id, ids):
  found = uniform.random_ids(jax.random.key(0), (40, 5), 5, mask_id)
  assert np.unique(found).tolist() == ids and uniform.states(5, mask_id) == len(ids)


def test_of_two_ids_the_clean_one_is_above_by_a_known_chance():
  """P(N(m, 1) > N(0, 1)) = Phi(m / sqrt 2), and its slope."""
  gamma = np.array([-4.0, -1.0, 0.0, 2.0])
  mean = np.exp(-gamma / 2)
  alpha, slope = jax.jit(uniform.argmax_survival, static_argnums=1)(jnp.float32(gamma), 2)
  np.testing.assert_allclose(alpha, 2 * norm.cdf(mean / np.sqrt(2)) - 1, rtol=2e-5)
  want = np.sqrt(2) * norm.pdf(mean / np.sqrt(2)) * -mean / 2
  np.testing.assert_allclose(slope, want, rtol=2e-4, atol=1e-6)  # almost flat at the first


def test_survival_is_the_frequency_of_the_argmax():
  """And in a vocabulary of 50257 it is between its neighbours' by the slope."""
  n, gamma = 50, -1.5
  rng = np.random.default_rng(0)
  z = rng.normal(size=(40_000, n))
  z[:, 0] += np.exp(-gamma / 2)
  stays = (z.argmax(1) == 0).mean()  # alpha, and by chance 1 / n of the rest
  alpha, _ = jax.jit(uniform.argmax_survival, static_argnums=1)(jnp.float32([gamma]), n)
  assert float(alpha[0]) == pytest.approx((n * stays - 1) / (n - 1), abs=0.01)
  around = jnp.float32([-2.51, -2.5, -2.49])
  alpha, slope = jax.jit(uniform.argmax_survival, static_argnums=1)(around, 50257)
  assert float(alpha[2] - alpha[0]) / 0.02 == pytest.approx(float(slope[1]), rel=2e-3)
