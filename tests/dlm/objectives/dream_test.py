"""Dream's weights, ends and shift in packed rows; the authors' losses are conformance cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import DreamSft, dream
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Constant

SEGMENT = np.array([1] * 5 + [2] * 6 + [0] * 3)
TOKENS = oracle.sample(40, len(SEGMENT))


def packed():
  return oracle.rows(TOKENS, np.tile(SEGMENT, (len(TOKENS), 1)))


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_cart_weights_are_the_sum_over_the_clean_tokens_of_the_document(p):
  masked = np.random.default_rng(0).random(TOKENS.shape) < 0.5
  first = np.tile(np.diff(SEGMENT, prepend=-1) != 0, (len(TOKENS), 1))
  got = jax.jit(dream.cart_weights, static_argnums=2)(jnp.asarray(masked), jnp.asarray(first), p)
  n, i = np.indices((len(SEGMENT), len(SEGMENT)))
  law = np.where((n != i) & (SEGMENT[n] == SEGMENT[i]), 0.5 * p * (1 - p) ** (abs(n - i) - 1.0), 0)
  np.testing.assert_allclose(got, masked * (~masked @ law), rtol=1e-5, atol=1e-7)


def test_ends_of_documents_are_masked_together():
  tokens = TOKENS.copy()
  tokens[:, [2, 4, 7, 11]], tokens[:, [3, 8, 9, 10]] = 0, 1  # runs at the ends: 1 slot and 3
  batch = packed().replace(tokens_BxL=jnp.asarray(tokens))
  u = np.random.default_rng(0).random(tokens.shape).astype(np.float32)
  got = np.asarray(jax.jit(dream.of_last_runs)(jnp.asarray(u), batch))
  np.testing.assert_array_equal(got[:, 8:11], np.repeat(u[:, 8:9], 3, 1))
  np.testing.assert_array_equal(got[:, :8], u[:, :8])
  noisy = oracle.corrupt(DreamSft(MASK, tie_ends=True), 0, batch)
  hidden = np.asarray(noisy.inputs_BxW[:, 8:11] == MASK)
  assert (hidden == hidden[:, :1]).all() and hidden.any() and not hidden.all()


def test_first_tokens_of_documents_are_asked_of_themselves():
  noisy = oracle.corrupt(DreamSft(MASK), 0, packed())
  np.testing.assert_array_equal(noisy.ask_BxL[0, :11], [0, 0, 1, 2, 3, 5, 5, 6, 7, 8, 9])
  assert oracle.corrupt(DreamSft(MASK, shift=0), 0, packed()).ask_BxL is None


@pytest.mark.parametrize(
  ("weight", "of_time"),
  [("none", lambda t: t / t), ("inverse", lambda t: 1 / t), ("linear", lambda t: 1 - t)],
)
def test_loss_is_a_weighted_mean_over_masked_tokens(weight, of_time):
  batch = packed().replace(tokens_BxL=jnp.zeros(TOKENS.shape, jnp.int32))
  objective = DreamSft(2, weight=weight)
  noisy = oracle.corrupt(objective, 0, batch)
  sums, _ = jax.jit(objective.loss, static_argnums=0)(Constant(), {}, noisy)
  masked = np.asarray(noisy.inputs_BxW == 2)
  assert float(sums.count) == masked.sum() and not masked[:, 11:].any()
  want = of_time(np.asarray(noisy.time_BxW))[masked].sum()
  assert float(sums.total) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 3.0), (2.0, 0.0)])
def test_focal_weighs_tokens_by_what_is_missing_of_their_probability(alpha, gamma):
  batch = packed().replace(tokens_BxL=jnp.zeros(TOKENS.shape, jnp.int32))
  plain = DreamSft(2)
  focal = DreamSft(2, focal=True, focal_alpha=alpha, focal_gamma=gamma)
  noisy, model = oracle.corrupt(plain, 0, batch), Constant(nats=float(np.log(4)))  # p = 1 / 4
  losses = [np.asarray(oracle.token_losses(o, model, {}, noisy)) for o in (plain, focal)]
  assert losses[0].any()
  np.testing.assert_allclose(losses[1], alpha * 0.75**gamma * losses[0], rtol=1e-4)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"weight": "carts"}, "weight='carts' is not one of cart, inverse, linear, none"),
    ({"focal_alpha": 0.0}, "focal_alpha=0.0 must be positive"),
    ({"focal_gamma": -1.0}, "focal_gamma=-1.0 must not be negative"),
    ({"cart_p": 1.0}, r"cart_p=1.0 must lie in \(0, 1\)"),
    ({"shift": 2}, "shift=2 must be 0 or 1"),
    ({"times": "even"}, "times='even' is not one of"),
  ],
)
def test_mistakes_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    DreamSft(MASK, **fields)
