import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.token_stats import noise


def test_the_bits_are_those_of_jax_random():
  key = jax.random.key(7)
  key0, key1 = jax.random.key_data(key)
  x0_V, x1_V = noise.threefry2x32(
    key0, key1, jnp.zeros(1000, jnp.uint32), jnp.arange(1000, dtype=jnp.uint32)
  )
  np.testing.assert_array_equal(x0_V ^ x1_V, jax.random.bits(key, (1000,)))


def test_noise_belongs_to_key_and_id():
  key_data_Rx2 = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
  whole_RxV = noise.gumbel(key_data_Rx2, jnp.arange(100))
  part_RxT = noise.gumbel(key_data_Rx2[1:], jnp.array([40, 3, 99]))
  np.testing.assert_array_equal(part_RxT, whole_RxV[1:][:, jnp.array([40, 3, 99])])
  assert len(np.unique(whole_RxV)) == whole_RxV.size


def test_noise_has_the_moments_of_a_gumbel():
  key_data_Rx2 = jax.random.key_data(jax.random.split(jax.random.key(1), 200))
  noise_N = np.asarray(noise.gumbel(key_data_Rx2, jnp.arange(1000)), np.float64).ravel()
  np.testing.assert_allclose(noise_N.mean(), np.euler_gamma, atol=0.012)  # 4 standard errors
  np.testing.assert_allclose(noise_N.var(), np.pi**2 / 6, atol=0.04)
  for level in (-1.0, 0.0, 2.0, 6.0):
    p = 1 - np.exp(-np.exp(-level))
    error = np.sqrt(p * (1 - p) / noise_N.size)
    assert abs((noise_N > level).mean() - p) < 4 * error


def test_tails_are_finite_and_reach_beyond_one_word():
  top = 2**32 - 1
  x0 = jnp.array([0, 0, 0, 1, top, top], jnp.uint32)
  x1 = jnp.array([0, 1, 2**31, 0, 0, top], jnp.uint32)
  u = np.asarray(x0, np.float64) * 2.0**-32 + np.asarray(x1, np.float64) * 2.0**-64 + 2.0**-65
  u = np.minimum(u, 1 - 2.0**-24)
  expected = -np.log(-np.log1p(-u))
  actual = noise.from_words(x0, x1)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  assert actual[0] > 45 and np.isfinite(actual).all()
