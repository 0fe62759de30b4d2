"""What rows ask of single ids, and the mean embedding."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.token_stats import StatSpec
from kernels_pallas.token_stats.spec import CONFIDENCES
from tests.kernels_pallas.token_stats import twin


def some(rows=5, vocab=23, width=4, seed=8):
  rng = np.random.default_rng(seed)
  z_RxV = (rng.normal(size=(rows, vocab)) * 2).astype(np.float32)
  return z_RxV, rng.normal(size=(vocab, width)).astype(np.float32)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_gathered_logits_are_plain(compute, confidence):
  z_RxV, _ = some()
  spec = StatSpec(gather=True, forbidden=(2,), confidence=confidence, top_k=3)
  id_RxJ = np.array([[0, 6, 7, 22]] * 3 + [[7, 7, -1, 16], [-5, 2, 23, 16]])  # 16: in two tiles
  stats = compute(jnp.asarray(z_RxV), jnp.eye(23), spec, gather_id_RxJ=id_RxJ)
  plain_RxV = twin.allowed(z_RxV, spec)
  expected = [
    [z_V[i] if 0 <= i < len(z_V) else -np.inf for i in id_J]
    for z_V, id_J in zip(plain_RxV, id_RxJ, strict=True)
  ]
  np.testing.assert_array_equal(stats.gathered, expected)


def test_the_best_ids_in_order(compute_in_xla):
  """The lowest of equal ones first; what must not be chosen is none of them."""
  z_RxV, _ = some()
  z_RxV[0] = z_RxV[0].round()
  spec = StatSpec(best=9, forbidden=tuple(range(2, 18)))  # seven are left
  stats = compute_in_xla(jnp.asarray(z_RxV), jnp.eye(23), spec)
  allowed_RxV = twin.allowed(z_RxV, spec)
  order_RxJ = np.argsort(-allowed_RxV, axis=1, kind="stable")[:, :9]
  np.testing.assert_array_equal(
    stats.best_logit, np.take_along_axis(allowed_RxV, order_RxJ, axis=1)
  )
  np.testing.assert_array_equal(stats.best[:, :7], order_RxJ[:, :7])
  np.testing.assert_array_equal(stats.best[:, 0], stats.token)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"confidence": "shaped", "top_k": 4, "top_p": 0.9}], ids=str)
def test_soft_is_the_mean_embedding(compute_in_xla, dtype, shape):
  z_RxV, embed_VxD = some()
  z_RxV += np.array([[0], [1e3], [-1e3], [0], [0]], np.float32)
  z_RxV[3] = -300
  z_RxV[3, 20] = 300  # one id has it all
  embed_VxD = jnp.asarray(embed_VxD, dtype)
  spec = StatSpec(soft=True, forbidden=(2,), **shape)
  stats = compute_in_xla(jnp.asarray(z_RxV), jnp.eye(23), spec, embed_VxD=embed_VxD)
  told_RxV = twin.told(z_RxV, spec)
  p_RxV = np.exp(told_RxV - twin.lse(told_RxV)[:, None])
  assert stats.soft.dtype == jnp.float32
  expected_RxD = p_RxV @ np.asarray(embed_VxD, np.float64)
  np.testing.assert_allclose(stats.soft, expected_RxD, rtol=1e-5, atol=2e-6)
  np.testing.assert_array_equal(stats.soft[3], np.asarray(embed_VxD[20], np.float32))


@pytest.mark.parametrize("fill", [np.nan, -np.inf])
def test_soft_of_an_undefined_row_is_undefined_and_of_others_is_not(compute_in_xla, fill):
  _, embed_VxD = some()
  unembed_Vx2 = np.zeros((23, 2), np.float32)
  unembed_Vx2[:, 1] = np.linspace(-1, 1, 23)
  hidden_Rx2 = np.array([[1, 1], [fill, 0], [0, 2]], np.float32)
  unembed_Vx2[:, 0] = 1
  spec = StatSpec(soft=True)
  stats = compute_in_xla(
    jnp.asarray(hidden_Rx2), jnp.asarray(unembed_Vx2), spec, embed_VxD=jnp.asarray(embed_VxD)
  )
  assert np.isnan(stats.soft[1]).all()
  assert np.isfinite(stats.soft[::2]).all()
