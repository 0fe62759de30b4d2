"""Which id is drawn: against sorted float64 numpy with the same noise, and as a distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.token_stats import StatSpec, noise
from tests.kernels_pallas.token_stats.twin import allowed, kept, keys, lse, shaped

ROWS = 192


@pytest.mark.parametrize(
  "draw",
  [
    {"temperature": 0.3},
    {"temperature": 4.0, "top_k": 1},
    {"temperature": 4.0, "top_k": 11},
    {"temperature": 1.0, "top_k": 500},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 0.3, "top_p": 0.93},
    {"temperature": 4.0, "top_p": 0.63},
    {"temperature": 4.0, "top_k": 5, "top_p": 0.6},
    {"temperature": 1.0, "top_k": 11, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.8, "top_p_of": "all"},
    {"temperature": 0.7, "top_p": 0.9, "top_p_rule": "within"},
  ],
  ids=str,
)
def test_draws_what_sorted_numpy_draws(compute, draw):
  rng = np.random.default_rng(3)
  z_RxV = (rng.normal(size=(ROWS, 23)) * 2).astype(np.float32)
  z_RxV[::2] = np.round(z_RxV[::2])  # half of the rows are full of ties
  spec = StatSpec(forbidden=(1, 22), **draw)
  key_data_Rx2 = keys(ROWS)
  stats = compute(jnp.asarray(z_RxV), jnp.eye(23), spec, key_data_Rx2=key_data_Rx2)

  gumbel_RxV = np.asarray(noise.gumbel(key_data_Rx2, jnp.arange(23)), np.float64)
  plain_RxV = allowed(z_RxV, spec)
  score_RxV = shaped(z_RxV, spec) + gumbel_RxV
  np.testing.assert_array_equal(stats.token, score_RxV.argmax(1))
  np.testing.assert_array_equal(stats.logit, plain_RxV[np.arange(ROWS), score_RxV.argmax(1)])
  np.testing.assert_array_equal(stats.top1, plain_RxV.max(1))  # plain: no noise, no cut


@pytest.mark.parametrize(
  "shape", [{"confidence": "tempered"}, {"top_k": 6, "confidence": "shaped"}], ids=str
)
def test_rows_with_settings_of_their_own_draw_what_all_rows_with_these_would(compute, shape):
  z_RxV = (np.random.default_rng(6).normal(size=(12, 23)) * 2).astype(np.float32)
  own_R = np.tile(np.array([0.0, 0.25, 2.0, 2.0], np.float32), 3)
  top_p_R = np.tile(np.array([0.7, 0.9, 1.0, 0.7], np.float32), 3)
  run = functools.partial(compute, jnp.asarray(z_RxV), jnp.eye(23), key_data_Rx2=keys(12))
  mixed = run(
    StatSpec(per_row=True, **shape), temperature_Rx1=jnp.asarray(own_R)[:, None], top_p_R=top_p_R
  )
  for temperature, top_p in {*zip(own_R.tolist(), top_p_R.tolist(), strict=True)}:
    rows = (own_R == temperature) & (top_p_R == np.float32(top_p))
    alone = run(StatSpec(temperature=temperature, top_p=round(top_p, 3), **shape))
    np.testing.assert_array_equal(mixed.token[rows], alone.token[rows])
    np.testing.assert_array_equal(mixed.logit[rows], alone.logit[rows])
    np.testing.assert_allclose(mixed.lse[rows], alone.lse[rows], rtol=1e-6)


def test_ids_that_a_row_may_not_have_are_as_forbidden_ones(compute):
  """Bits of 45 ids in two words; a row that may have all is as if nothing were said."""
  rng = np.random.default_rng(9)
  z_RxV = (rng.normal(size=(6, 45)) * 2).astype(np.float32)
  may_RxV = rng.random((6, 45)) < 0.3
  may_RxV[0], may_RxV[1], may_RxV[2] = True, np.arange(45) == 44, np.arange(45) == 31
  words = np.packbits(np.pad(may_RxV, [(0, 0), (0, 19)]), axis=1, bitorder="little").view(np.uint32)
  spec = StatSpec(temperature=1.5, entropy=True, top2=True, forbidden=(3,))
  key_data_Rx2 = keys(6)
  stats = compute(
    jnp.asarray(z_RxV), jnp.eye(45), spec, key_data_Rx2=key_data_Rx2, allowed_RxU=jnp.asarray(words)
  )
  told_RxV = allowed(np.where(may_RxV, z_RxV, -np.inf), spec)
  gumbel_RxV = np.asarray(noise.gumbel(key_data_Rx2, jnp.arange(45)), np.float64)
  np.testing.assert_array_equal(stats.token, (told_RxV / 1.5 + gumbel_RxV).argmax(1))
  np.testing.assert_array_equal(stats.top1, told_RxV.max(1))
  np.testing.assert_allclose(stats.lse, lse(told_RxV), rtol=1e-6, atol=1e-6)
  assert stats.token[1] == 44 and stats.token[2] == 31
  np.testing.assert_allclose(stats.entropy[1:3], 0, atol=1e-6)


def test_top_p_finds_its_cut_among_close_logits_far_from_zero(compute):
  rng = np.random.default_rng(4)
  z_RxV = (1e4 + rng.permuted(np.tile(np.arange(64) / 64, (ROWS, 1)), axis=1)).astype(np.float32)
  spec = StatSpec(temperature=0.25, top_p=0.5)
  key_data_Rx2 = keys(ROWS)
  stats = compute(jnp.asarray(z_RxV), jnp.eye(64), spec, key_data_Rx2=key_data_Rx2)
  kept_RxV = np.stack([kept(z_V, spec) for z_V in z_RxV.astype(np.float64)])
  drawn_R = kept_RxV[np.arange(ROWS), stats.token]
  assert drawn_R.all()
  lowest_R = np.where(kept_RxV, z_RxV, np.inf).min(1)
  assert (np.asarray(stats.logit) - lowest_R).min() == 0  # and the cut itself is drawn sometimes


@pytest.mark.parametrize(
  "spec", [StatSpec(temperature=0.7), StatSpec(temperature=1.5, top_k=6, top_p=0.9)]
)
def test_frequencies_are_those_of_the_tempered_softmax(compute_in_xla, spec):
  z_V = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.25])
  draws = 20_000
  hidden_RxV = jnp.broadcast_to(jnp.asarray(z_V, jnp.float32), (draws, 8))
  stats = compute_in_xla(hidden_RxV, jnp.eye(8), spec, key_data_Rx2=keys(draws, seed=5))
  p_V = np.where(kept(z_V, spec), np.exp(z_V / spec.temperature), 0)
  expected_V = draws * p_V / p_V.sum()
  count_V = np.bincount(np.asarray(stats.token), minlength=8)
  np.testing.assert_array_equal(count_V[p_V == 0], 0)
  some_V = p_V > 0
  chi2 = ((count_V - expected_V)[some_V] ** 2 / expected_V[some_V]).sum()
  assert chi2 < 29.9  # 1 in 10,000 at 7 degrees of freedom


def test_a_row_alone_draws_what_it_draws_in_a_batch(compute):
  hidden_RxD = jax.random.normal(jax.random.key(0), (6, 8))
  unembed_VxD = jax.random.normal(jax.random.key(1), (20, 8))
  key_data_Rx2 = keys(6)
  spec = StatSpec(temperature=1.0, top_k=12, top_p=0.9)
  batch = compute(hidden_RxD, unembed_VxD, spec, key_data_Rx2=key_data_Rx2)
  alone = compute(hidden_RxD[3:4], unembed_VxD, spec, key_data_Rx2=key_data_Rx2[3:4])
  assert alone.token[0] == batch.token[3]
