"""Estimators of likelihood against joint laws that are known."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.evaluation import likelihood
from dlm.evaluation.likelihood import nelbo, summarise
from dlm.objectives import Autoregressive, Bd3lm, ExactCount, Llada, LladaSft, Mdlm
from dlm.types import LogitHead, ModelOutput
from tests.dlm.objectives import oracle

JOINT = np.arange(1.0, 9.0).reshape(2, 2, 2) / 36  # p(y) over 3 bits, in lexicographic order
MASK = 2


@dataclasses.dataclass(frozen=True)
class Bits:
  """The exact p(bit | the bits that stand) of `params["joint"]`, for the last 3 slots of a row.

  Slots before them are a prompt, which says nothing; the mask id has logit -30.
  """

  def __call__(self, params, tokens_BxW, **_):
    bits_Bx3 = tokens_BxW[:, -3:]
    # [B, slot, value]: probability mass of the cells that agree with what stands there.
    stands = (bits_Bx3[..., None] == MASK) | (bits_Bx3[..., None] == jnp.arange(2)[None, None])
    a, b, c = (stands[:, i].astype(jnp.float32) for i in range(3))
    joint = params["joint"]
    free = jnp.ones_like(a)
    probs = [
      jnp.einsum("abc,za,zb,zc->za", joint, free, b, c),
      jnp.einsum("abc,za,zb,zc->zb", joint, a, free, c),
      jnp.einsum("abc,za,zb,zc->zc", joint, a, b, free),
    ]
    logits = jnp.log(jnp.stack(probs, 1))
    logits = jnp.concatenate([logits, jnp.full((*logits.shape[:2], 1), -30.0)], -1)
    before = jnp.zeros((len(tokens_BxW), tokens_BxW.shape[1] - 3, 3))
    return ModelOutput(LogitHead(jnp.concatenate([before, logits], 1), jnp.eye(3)), None, {})


PARAMS = {"joint": jnp.asarray(JOINT, jnp.float32)}


def row_nats(objective, draws, y):
  tokens = np.tile(np.array(y, np.int32), (len(draws["u_mask"]), 1))
  noisy = oracle.replay(objective, draws, oracle.rows(tokens))
  return np.asarray(oracle.token_losses(objective, Bits(), PARAMS, noisy), np.float64).sum(-1)


@pytest.mark.parametrize(
  ("y", "nats", "variance"), [((0, 1, 0), 2.484907, 0.502999), ((1, 1, 1), 1.504077, 0.043546)]
)
def test_exact_counts_of_three_bits_enumerated(y, nats, variance):
  """Every count and every order is equally likely: the mean is -ln p(y), the variance is known."""
  draws = [(count, order) for count in range(3) for order in itertools.permutations(range(3))]
  given = {
    "u_time": np.array([(count + 0.5) / 3 for count, _ in draws]),
    "stratum": np.arange(len(draws)),
    "u_mask": np.array([order for _, order in draws]) / 3,
  }
  nll = row_nats(ExactCount(MASK, times="iid"), given, y)
  assert -math.log(JOINT[y]) == pytest.approx(nats, abs=1e-6)
  assert nll.mean() == pytest.approx(nats, abs=1e-5)
  assert nll.var() == pytest.approx(variance, abs=1e-5)


def test_bernoulli_masking_has_the_bias_of_its_floor():
  """Integrated over the noise level (a quadratic: 3 nodes are exact) and over all mask sets."""
  nodes, weights = np.polynomial.legendre.leggauss(3)
  sets = list(itertools.product((False, True), repeat=3))
  cases = [(t, w / 2, s) for t, w in zip((nodes + 1) / 2, weights, strict=True) for s in sets]
  given = {
    "u_time": np.array([t for t, _, _ in cases]),
    "stratum": np.arange(len(cases)),
    "u_mask": np.where([s for _, _, s in cases], 0.0, 1.0),
    "u_cut": 1.0,
    "length": 3,
  }
  nll = row_nats(Llada(MASK, random_length=0.0), given, (0, 1, 0))
  p = np.array([0.999 * t + 1e-3 for t, _, _ in cases])
  size = np.array([sum(s) for _, _, s in cases])
  chance = np.array([w for _, w, _ in cases]) * p**size * (1 - p) ** (3 - size)
  assert (chance * nll).sum() == pytest.approx(2.485053, abs=2e-6)


def test_chain_rule_is_exact_in_both_orders():
  tokens = np.array(list(itertools.product((0, 1), repeat=3)), np.int32)
  for backward in (False, True):
    nll, count = likelihood.chain_rule(
      Bits(), PARAMS, oracle.rows(tokens), mask_id=MASK, backward=backward
    )
    np.testing.assert_allclose(nll, -np.log(JOINT.ravel()), rtol=1e-5)
    np.testing.assert_array_equal(count, 3)


def test_a_corpus_is_scored_with_its_standard_error():
  tokens = oracle.sample(600, 8, seed=5)
  exact = oracle.exact_nats(tokens).mean()
  batches = [oracle.rows(part) for part in np.split(tokens, 2)]
  got = {
    "one": nelbo(ExactCount(oracle.MASK), oracle.Oracle(), {}, batches, jax.random.key(0)),
    "four": nelbo(
      ExactCount(oracle.MASK), oracle.Oracle(), {}, batches, jax.random.key(1), draws=4
    ),
  }
  for result in got.values():
    assert abs(result.nats_per_token - exact) < 4 * result.standard_error
    assert result.tokens == 4800 and result.sequences == 600
  assert got["four"].standard_error < got["one"].standard_error
  one = got["one"]
  assert one.perplexity == pytest.approx(math.exp(one.nats_per_token))
  assert one.bits_per_token == pytest.approx(one.nats_per_token / math.log(2))


def test_summaries_divide_total_nats_by_total_tokens():
  got = summarise(np.array([2.0, 9.0, 5.0]), np.array([1, 3, 0]))
  assert got.nats_per_token == 11 / 4 and got.tokens == 4 and got.sequences == 2
  assert got.standard_error == pytest.approx(math.sqrt(2 * 2 * 0.75**2) / 4)
  assert math.isnan(summarise(np.array([2.0]), np.array([1])).standard_error)
  with pytest.raises(ValueError, match="no row has a token"):
    summarise(np.array([0.0]), np.array([0]))


@pytest.mark.parametrize(
  ("objective", "words"),
  [
    (LladaSft(4), "LladaSft is not a likelihood: it divides each row by its answer length"),
    (Bd3lm(4, 4, window=(0.3, 0.8), ignore_bos=False), "Bd3lm is not a likelihood: window="),
    (Llada(4), "random_length=0.01"),
  ],
)
def test_what_is_no_likelihood_is_refused_by_name(objective, words):
  with pytest.raises(ValueError, match=words):
    nelbo(objective, oracle.Oracle(), {}, [], jax.random.key(0))


def test_no_batches_and_no_draws_are_mistakes():
  for options in ({"batches": []}, {"batches": [None], "draws": 0}):
    with pytest.raises(ValueError, match=r"no batch|draws=0"):
      nelbo(Mdlm(4), oracle.Oracle(), {}, key=jax.random.key(0), **options)


def test_autoregressive_rows_are_exact():
  tokens = oracle.sample(20, 8)
  got = nelbo(
    Autoregressive(4), oracle.Oracle(ahead=1), {}, [oracle.rows(tokens)], jax.random.key(0)
  )
  assert got.nats_per_token == pytest.approx(oracle.exact_nats(tokens)[:, 1:].mean(), rel=1e-5)
