"""What rows ask of single ids, and the mean embedding."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.token_stats import StatSpec
from tests.kernels_pallas.token_stats import twin


def some(rows=5, vocab=23, width=4, seed=8):
  rng = np.random.default_rng(seed)
  z_RxV = (rng.normal(size=(rows, vocab)) * 2).astype(np.float32)
  return z_RxV, rng.normal(size=(vocab, width)).astype(np.float32)


@pytest.mark.parametrize("shaped", [False, True])
def test_gathered_logits_are_plain(compute, shaped):
  z_RxV, _ = some()
  spec = StatSpec(gather=True, forbidden=(2,), shaped=shaped, top_k=3)
  id_RxJ = np.array([[0, 6, 7, 22]] * 3 + [[7, 7, -1, 16], [-5, 2, 23, 16]])  # 16: in two tiles
  stats = compute(jnp.asarray(z_RxV), jnp.eye(23), spec, gather_id_RxJ=id_RxJ)
  plain_RxV = twin.allowed(z_RxV, spec)
  expected = [
    [z_V[i] if 0 <= i < len(z_V) else -np.inf for i in id_J]
    for z_V, id_J in zip(plain_RxV, id_RxJ, strict=True)
  ]
  np.testing.assert_array_equal(stats.gathered, expected)


@pytest.mark.parametrize(
  "shape",
  [{}, {"temperature": 0.7, "top_k": 6, "top_p": 0.9}, {"shaped": True, "top_p": 0.9}],
  ids=str,
)
def test_a_bias_is_part_of_every_logit_but_the_gathered(compute, shape):
  z_RxV, _ = some()
  rows, vocab = z_RxV.shape
  id_RxJ = np.array([[0, 6, 7, 22]] * 2 + [[16, 7, 16, -1], [-5, 23, 30, 16], [2, 3, 2, 22]])
  bias_RxJ = np.random.default_rng(9).uniform(-1, 4, size=id_RxJ.shape).astype(np.float32)
  bias_RxJ[1, 0] = -1e4
  spec = StatSpec(
    top2=True, entropy=True, current=True, gather=True, outside=(7,), forbidden=(2,), **shape
  )
  current_R = np.array([6, 0, 16, 16, 1])
  given = {"current_R": jnp.asarray(current_R), "gather_id_RxJ": jnp.asarray(id_RxJ)}
  if spec.temperature > 0:
    given["key_data_Rx2"] = twin.keys(rows)
  biased_RxV = z_RxV.copy()
  for row, id_J in enumerate(id_RxJ):
    for slot, token in enumerate(id_J):
      if 0 <= token < vocab:
        biased_RxV[row, token] += bias_RxJ[row, slot]
  bias = {"bias_id_RxJ": jnp.asarray(id_RxJ), "bias_RxJ": jnp.asarray(bias_RxJ)}
  stats = compute(jnp.asarray(z_RxV), jnp.eye(vocab), spec, **given, **bias)
  unbiased = compute(jnp.asarray(z_RxV), jnp.eye(vocab), spec, **given)
  expected = compute(jnp.asarray(biased_RxV), jnp.eye(vocab), spec, **given)
  np.testing.assert_array_equal(stats.gathered, unbiased.gathered)
  for name in ("token", "logit", "top1", "top2", "lse", "entropy", "current", "lse_outside"):
    actual_R, expected_R = getattr(stats, name), getattr(expected, name)
    np.testing.assert_allclose(actual_R, expected_R, rtol=1e-6, atol=2e-6, err_msg=name)
  assert (stats.token != unbiased.token).any()


def test_a_bias_of_minus_infinity_bans_an_id_of_one_row(compute):
  z_RxV = jnp.broadcast_to(jnp.arange(20.0)[None, :], (2, 20))
  bias_RxJ = jnp.array([[-jnp.inf], [0.0]])
  bias_id_RxJ = jnp.array([[19], [19]])
  stats = compute(z_RxV, jnp.eye(20), StatSpec(), bias_id_RxJ=bias_id_RxJ, bias_RxJ=bias_RxJ)
  np.testing.assert_array_equal(stats.token, [18, 19])
  left_RxV = np.tile(np.arange(20.0), (2, 1))
  left_RxV[0, 19] = -np.inf
  np.testing.assert_allclose(stats.lse, twin.lse(left_RxV), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"shaped": True, "top_k": 4, "top_p": 0.9}], ids=str)
def test_soft_is_the_mean_embedding(compute, dtype, shape):
  z_RxV, embed_VxD = some()
  z_RxV += np.array([[0], [1e3], [-1e3], [0], [0]], np.float32)
  z_RxV[3] = -300
  z_RxV[3, 20] = 300  # one id has it all
  embed_VxD = jnp.asarray(embed_VxD, dtype)
  spec = StatSpec(soft=True, forbidden=(2,), **shape)
  stats = compute(jnp.asarray(z_RxV), jnp.eye(23), spec, embed_VxD=embed_VxD)
  told_RxV = twin.shaped(z_RxV, spec) if spec.shaped else twin.allowed(z_RxV, spec)
  p_RxV = np.exp(told_RxV - twin.lse(told_RxV)[:, None])
  assert stats.soft.dtype == jnp.float32
  expected_RxD = p_RxV @ np.asarray(embed_VxD, np.float64)
  np.testing.assert_allclose(stats.soft, expected_RxD, rtol=1e-5, atol=2e-6)
  np.testing.assert_array_equal(stats.soft[3], np.asarray(embed_VxD[20], np.float32))


@pytest.mark.parametrize("fill", [np.nan, -np.inf])
def test_soft_of_an_undefined_row_is_undefined_and_of_others_is_not(compute, fill):
  _, embed_VxD = some()
  unembed_Vx2 = np.zeros((23, 2), np.float32)
  unembed_Vx2[:, 1] = np.linspace(-1, 1, 23)
  hidden_Rx2 = np.array([[1, 1], [fill, 0], [0, 2]], np.float32)
  unembed_Vx2[:, 0] = 1
  spec = StatSpec(soft=True)
  stats = compute(
    jnp.asarray(hidden_Rx2), jnp.asarray(unembed_Vx2), spec, embed_VxD=jnp.asarray(embed_VxD)
  )
  assert np.isnan(stats.soft[1]).all()
  assert np.isfinite(stats.soft[::2]).all()
