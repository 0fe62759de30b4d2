"""Times: which n-th of [0, 1) each item of a batch draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.diffusion import times


@pytest.mark.parametrize("n", [1, 4, 49, 98])  # a float arange gives one too many at 49 and 98
def test_one_time_in_every_stratum(n):
  draws = times.draw(jax.random.key(n), n)
  for name in ("stratified", "shared_offset"):
    t = np.asarray(times.TIMES[name](draws["u_time"], draws["stratum"]))
    assert t.shape == (n,) and (t >= 0).all() and (t < 1).all()
    assert sorted((t * n + 1e-4).astype(int) % n) == list(range(n))


def test_strata_do_not_follow_the_rows():
  stratum = np.asarray(times.draw(jax.random.key(0), 64)["stratum"])
  assert sorted(stratum) == list(range(64))
  assert abs(np.corrcoef(stratum, np.arange(64))[0, 1]) < 0.5


def test_jitter_is_shared_or_not():
  u = jnp.array([0.5, 0.25, 0.75, 0.0])
  np.testing.assert_allclose(
    times.stratified(u, jnp.arange(4)), [0.125, 0.3125, 0.6875, 0.75], atol=1e-6
  )
  np.testing.assert_allclose(
    times.shared_offset(u, jnp.arange(4)), [0.5, 0.75, 0.0, 0.25], atol=1e-6
  )
  np.testing.assert_array_equal(times.iid(u, jnp.arange(4)), u)


def test_an_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match="times='sobol' is not one of iid, stratified"):
    times.check("Mdlm", "sobol")
