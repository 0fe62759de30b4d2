"""What a router is asked for, by hand; the authors' numbers are in tests/conformance/ec_moe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.models.moe import router_losses

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
LIVE = jnp.array([True, True, False, True, True, False])
LOAD, CHOOSERS = np.array([3, 2, 1, 2]), np.array([2, 0, 0, 4, 2, 0])


def losses(logits_TxE, live_T, choosers_T=CHOOSERS):
  return jnp.stack([
    router_losses.z_loss(logits_TxE, live_T),
    router_losses.token_balance(logits_TxE, LOAD, 2, live_T),
    router_losses.expert_balance(logits_TxE, choosers_T, 2, live_T),
  ])  # fmt: skip


def test_values_by_hand():
  everywhere = jnp.ones(6, bool)
  x = np.asarray(LOGITS, np.float64)
  z, switch, ec = losses(LOGITS, everywhere)
  assert z == pytest.approx((np.log(np.exp(x).sum(1)) ** 2).mean(), rel=1e-5)
  prob = np.exp(x) / np.exp(x).sum(1, keepdims=True)
  assert switch == pytest.approx(4 * (prob.sum(0) * LOAD).sum() / (36 * 2), rel=1e-5)
  over_tokens = np.exp(x) / np.exp(x).sum(0, keepdims=True)
  assert ec == pytest.approx((over_tokens.sum(1) * CHOOSERS).sum() / (4 * 2), rel=1e-5)


def test_uniform_routing_costs_one():
  level, load, choosers = jnp.zeros((6, 4)), jnp.full(4, 3), jnp.full(6, 2)
  everywhere = jnp.ones(6, bool)
  assert router_losses.token_balance(level, load, 2, everywhere) == pytest.approx(1)
  assert router_losses.expert_balance(level, choosers, 2, everywhere) == pytest.approx(1)


def test_padding_counts_for_nothing():
  whole = losses(LOGITS, LIVE)
  np.testing.assert_allclose(
    whole, losses(LOGITS[LIVE], jnp.ones(4, bool), CHOOSERS[LIVE]), rtol=1e-6
  )
  gradient = jax.jacrev(losses)(LOGITS, LIVE)
  assert (
    not np.asarray(gradient)[:, ~LIVE].any() and np.asarray(gradient)[:, LIVE].any((1, 2)).all()
  )
  nothing = jax.jacrev(losses)(LOGITS, jnp.zeros(6, bool))
  assert np.isfinite(nothing).all()


def test_the_bias_moves_against_the_load():
  bias = router_losses.updated_bias(jnp.zeros(4), jnp.array([9, 1, 5, 5]), 0.25)
  assert bias.tolist() == [-0.25, 0.25, 0, 0]
