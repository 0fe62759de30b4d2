"""Statistics of what temperature alone makes of the logits, and of what top-k and top-p leave."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.token_stats import StatSpec, noise
from tests.kernels_pallas.token_stats import twin

ALL = StatSpec(
  top2=True, entropy=True, current=True, confidence="shaped", outside=(4, 20), forbidden=(1,)
)


def some_logits(rows=24, vocab=23):
  rng = np.random.default_rng(6)
  z_RxV = (rng.normal(size=(rows, vocab)) * 2).astype(np.float32)
  z_RxV[::2] = np.round(z_RxV[::2])  # half of the rows are full of ties
  return z_RxV


@pytest.mark.parametrize(
  "shape",
  [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 4.0, "top_p": 0.6},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.7},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.7, "top_p_of": "all"},
    {"top_k": 9, "top_p": 0.7, "top_p_of": "all"},
    {"top_p": 0.8, "top_p_rule": "within"},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.7, "top_p_rule": "within"},
    {"top_k": 9, "top_p": 0.7, "top_p_of": "all", "top_p_rule": "within"},
    {"confidence": "tempered", "temperature": 0.3},
    {"confidence": "tempered", "temperature": 1.5, "top_k": 6, "top_p": 0.7},
    {"confidence": "tempered", "top_k": 5},
  ],
  ids=str,
)
def test_statistics_are_those_of_the_logits_that_are_asked_for(compute, shape):
  spec = dataclasses.replace(ALL, **shape)
  z_RxV = some_logits()
  rows, vocab = z_RxV.shape
  current_R = np.arange(rows) % vocab
  key_data_Rx2 = twin.keys(rows) if spec.temperature > 0 else None
  stats = compute(
    jnp.asarray(z_RxV),
    jnp.eye(vocab),
    spec,
    current_R=jnp.asarray(current_R),
    key_data_Rx2=key_data_Rx2,
  )
  told_RxV = twin.told(z_RxV, spec)
  expected = twin.truth(told_RxV, spec, current_R)
  rest_RxV = told_RxV.copy()
  rest_RxV[:, list(spec.outside)] = -np.inf
  with np.errstate(invalid="ignore"):
    lse_R = twin.lse(rest_RxV)
  expected["lse_outside"] = np.where((rest_RxV > -np.inf).any(1), lse_R, -np.inf)
  if spec.temperature > 0:
    gumbel_RxV = np.asarray(noise.gumbel(key_data_Rx2, jnp.arange(vocab)), np.float64)
    expected["token"] = (twin.shaped(z_RxV, spec) + gumbel_RxV).argmax(1)
    expected["logit"] = told_RxV[np.arange(rows), expected["token"]]
  twin.assert_equal_stats(stats, expected)


def test_the_three_kinds_of_confidence_by_hand(compute):
  """Logits 2, 1, 0 at temperature 0.5, top-k 2; the best id's probability when it is drawn."""
  rows = 16
  z_RxV = jnp.broadcast_to(jnp.array([2.0, 1.0, 0.0]), (rows, 3))
  for confidence, p in {"plain": 0.66524, "tempered": 0.86681, "shaped": 0.88080}.items():
    spec = StatSpec(confidence=confidence, temperature=0.5, top_k=2)
    stats = compute(z_RxV, jnp.eye(3), spec, key_data_Rx2=twin.keys(rows))
    best_R = np.asarray(stats.token) == 0
    assert best_R.any() and not best_R.all()
    np.testing.assert_allclose(np.exp(stats.logit - stats.lse)[best_R], p, atol=1e-5)


def test_the_mass_of_top_p_is_that_of_all_or_of_the_top_k(compute):
  p_1xV = np.array([[0.4, 0.2, 0.15, 0.13, 0.12]])
  survivors = {"top_k": 2, "all": 3}  # 0.4 + 0.2 is 80 % of the best three, and 60 % of all
  for top_p_of, count in survivors.items():
    spec = StatSpec(confidence="shaped", top_k=3, top_p=0.7, top_p_of=top_p_of)
    stats = compute(jnp.asarray(np.log(p_1xV), jnp.float32), jnp.eye(5), spec)
    np.testing.assert_allclose(jnp.exp(stats.lse), p_1xV[0, :count].sum(), rtol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"top_k": 4}], ids=str)
def test_the_id_that_crosses_top_p_stays_or_goes_but_the_best_stays(compute, shape):
  p_2xV = np.array([[0.4, 0.2, 0.15, 0.13, 0.12], [0.8, 0.1, 0.05, 0.03, 0.02]])
  left = {"reach": (0.75, 0.8), "within": (0.6, 0.8)}
  for rule, mass in left.items():
    spec = StatSpec(confidence="shaped", top_p=0.7, top_p_of="all", top_p_rule=rule, **shape)
    stats = compute(jnp.asarray(np.log(p_2xV), jnp.float32), jnp.eye(5), spec)
    np.testing.assert_allclose(jnp.exp(stats.lse), mass, rtol=1e-5)


def test_a_cut_leaves_confidence_and_margin_of_one_where_one_id_is_left(compute):
  spec = StatSpec(top2=True, entropy=True, confidence="shaped", top_p=1e-6)
  stats = compute(jnp.asarray([[0.0, 3.0, 1.0, 2.0]]), jnp.eye(4), spec)
  twin.assert_equal_stats(
    stats, {"token": [1], "logit": [3], "lse": [3], "top2": [-np.inf], "entropy": [0]}
  )


@pytest.mark.parametrize("shape", [{"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_a_nan_logit_is_cut_and_yet_makes_the_row_undefined(compute, shape):
  z_V = np.arange(20.0)
  z_V[[12, 19]] = np.nan
  spec = StatSpec(entropy=True, confidence="shaped", **shape)
  stats = compute(jnp.ones((2, 1)), jnp.asarray(z_V, jnp.float32)[:, None], spec)
  twin.assert_equal_stats(stats, {"token": [18, 18], "logit": [18, 18], "top1": [18, 18]})
  assert np.isnan(stats.lse).all() and np.isnan(stats.entropy).all()


def test_huge_logits_keep_their_differences(compute):
  z_RxV = (np.linspace(0, 3, 16) + np.array([[1e4], [-1e4]])).astype(np.float32)
  spec = StatSpec(entropy=True, confidence="shaped", top_k=6, top_p=0.7, top_p_of="all")
  stats = compute(jnp.asarray(z_RxV), jnp.eye(16), spec)
  expected = twin.truth(twin.shaped(z_RxV, spec), spec, np.zeros(2, int))
  for name in ("token", "logit", "top1", "lse", "entropy"):
    np.testing.assert_allclose(getattr(stats, name), expected[name], rtol=1e-6)
