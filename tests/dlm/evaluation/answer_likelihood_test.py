"""Estimators of an answer's likelihood against joint laws that are known."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.evaluation import answer_likelihood
from dlm.evaluation.answer_likelihood import ESTIMATORS, AnswerScorer, Sets, all_sets, masked_counts
from dlm.types import LogitHead, ModelOutput
from tests.dlm.objectives import oracle

ORACLE = oracle.Oracle(longest=16)
TEXTS = oracle.sample(3, 12, seed=3)
NATS = oracle.exact_nats(TEXTS)
# Prompts and answers of unlike lengths, in one bucket.
ANSWERS = [
  (TEXTS[0, :5], TEXTS[0, 5:]),
  (TEXTS[1, :3], TEXTS[1, 3:8]),
  (TEXTS[2, :2], TEXTS[2, 2:6]),
]
EXACT = [NATS[0, 5:].sum(), NATS[1, 3:8].sum(), NATS[2, 2:6].sum()]
SCORER = AnswerScorer(ORACLE, oracle.MASK, batch=16)


def scored(answers=ANSWERS, **options):
  options = {"attention": masks.Full(), "greedy": False} | options
  return AnswerScorer(ORACLE, oracle.MASK, batch=16, **options)({}, answers)


@pytest.mark.parametrize("estimator", ["exact_count", "chain"])
@pytest.mark.parametrize(
  "attention", [masks.Full(), masks.BlockCausal(4), masks.AnswerBlocks(4)], ids=repr
)
def test_a_consistent_model_gives_the_exact_chain_value(attention, estimator):
  """The bound is tight, in blocks too: enumerated, it is log p(answer | prompt)."""
  for got, want in zip(scored(attention=attention, estimator=estimator), EXACT, strict=True):
    assert got.log_likelihood == pytest.approx(-want, abs=1e-5)
    assert got.standard_error == 0


def test_a_causal_model_takes_one_forward():
  scorer = AnswerScorer(
    oracle.Oracle(ahead=1), oracle.MASK, masks.Causal(), shift=1, batch=16, greedy=False
  )
  for got, want in zip(scorer({}, ANSWERS), EXACT, strict=True):
    assert got.log_likelihood == pytest.approx(-want, abs=1e-5)
    assert (got.standard_error, got.forwards) == (0, 1)


def test_neither_batch_nor_order_matter():
  options = {"attention": masks.BlockCausal(4), "estimator": "monte_carlo", "draws": 8}
  whole = scored(**options)
  alone = [scored([each], **options)[0] for each in ANSWERS]
  turned = scored(ANSWERS[::-1], **options)[::-1]
  assert whole == alone == turned
  one_row = AnswerScorer(ORACLE, oracle.MASK, batch=1, greedy=False, **options)({}, ANSWERS)
  for got, want in zip(one_row, whole, strict=True):
    assert got.log_likelihood == pytest.approx(want.log_likelihood, rel=1e-6)
  assert min(each.standard_error for each in whole) > 0


def table_of(attention):
  """Nats of each token of an answer of 7 under each set of masked tokens, [128, 7]."""
  sets = np.array(list(itertools.product((False, True), repeat=7)))
  # Each token alone is asked in rows of its own: sums tell no tokens apart.
  plan = Sets(np.repeat(sets, 7, 0), np.tile(np.eye(7), (128, 1)) * np.repeat(sets, 7, 0))
  scorer = AnswerScorer(ORACLE, oracle.MASK, attention, batch=896)
  (nats_D,) = scorer.sums({}, ANSWERS[:1], [plan])
  return nats_D.reshape(128, 7)


@pytest.fixture(scope="module")
def table():
  return table_of(masks.Full())


def looked_up(table, masked_Dxn):
  return table[masked_Dxn @ 2 ** np.arange(6, -1, -1)]


@pytest.mark.parametrize("attention", [masks.Full(), masks.AnswerBlocks(6)], ids=repr)
def test_standard_errors_cover_the_exact_value(attention):
  """95 % intervals of 200 estimates, by lookups, of each estimator that draws."""
  nats = table_of(attention)
  block_n = AnswerScorer(ORACLE, oracle.MASK, attention).blocks(5, 7)
  for name in ("exact_count", "monte_carlo"):
    covered = 0
    for seed in range(200):
      plan = ESTIMATORS[name](block_n, 60, np.random.default_rng(seed))
      assert plan.rounds == 15
      nats_D = (plan.weight_Dxn * looked_up(nats, plan.masked_Dxn)).sum(1)
      error = answer_likelihood._error(nats_D, plan.rounds)
      covered += abs(nats_D.sum() - EXACT[0]) <= 1.96 * error
    assert 0.91 <= covered / 200 <= 0.99, (name, covered)


@pytest.mark.parametrize("authors", [False, True])
def test_fixed_counts_enumerated(table, authors):
  """All first counts, all sets of a size: LLaDA's rounding is biased, ours is not.

  Of 6 tokens in 4 copies odd and even counts weigh one to three (evaluation of the rule itself).
  """
  every = all_sets(np.zeros(6, int))  # of the last 6 tokens
  nats = looked_up(table, np.pad(every.masked_Dxn, ((0, 0), (1, 0))))[:, 1:]
  size = every.masked_Dxn.sum(1)
  of_count = [(nats[size == k].sum(1) * 6 / k).mean() for k in range(1, 7)]
  bound = (every.weight_Dxn * nats).sum()
  counts = [masked_counts(first, 6, 4, authors=authors) for first in range(1, 7)]
  mean = np.mean([of_count[k - 1] for k in np.concatenate(counts)])
  assert bound == pytest.approx(NATS[0, 6:].sum(), abs=1e-5)
  if authors:
    weights = np.array([0.5, 1.5, 0.5, 1.5, 0.5, 1.5])
    assert mean == pytest.approx((weights * of_count).sum() / 6) and abs(mean - bound) > 1e-3
  else:
    assert mean == pytest.approx(bound)


@pytest.mark.parametrize(("length", "copies"), [(3, 2), (6, 4), (10, 32), (7, 32), (5, 5), (1, 4)])
def test_every_copy_has_a_uniform_count(length, copies):
  counts = np.array([masked_counts(k, length, copies) for k in range(1, length + 1)])
  for copy in counts.T:
    assert sorted(copy) == list(range(1, length + 1))


@pytest.mark.parametrize(
  ("length", "copies", "want"),
  [(3, 2, [1.5, 1, 0.5]), (6, 4, [0.5, 1.5, 0.5, 1.5, 0.5, 1.5]), (4, 2, [1, 1, 1, 1])],
)
def test_the_authors_rounding_prefers_some_counts(length, copies, want):
  counts = np.array([masked_counts(k, length, copies, authors=True) for k in range(1, length + 1)])
  np.testing.assert_allclose(np.bincount(counts.ravel())[1:] / copies, want)


def test_llada_draws_copies_in_rounds(table):
  plan = ESTIMATORS["llada"](np.zeros(7, int), 320, np.random.default_rng(0))
  assert plan.rounds == 10 and plan.masked_Dxn.shape == (320, 7)
  nats_D = (plan.weight_Dxn * looked_up(table, plan.masked_Dxn)).sum(1)
  error = answer_likelihood._error(nats_D, plan.rounds)
  assert abs(nats_D.sum() - EXACT[0]) < 4 * error


def test_greedy_is_what_decoding_writes():
  """The surest token first; in blocks side by side. A changed token is another answer."""
  for attention in (masks.Full(), masks.BlockCausal(4)):
    scorer = AnswerScorer(ORACLE, oracle.MASK, attention, batch=16)
    prompt, answer = np.array([1, 1, 1]), np.full(5, 1)
    other = np.array([1, 1, 1, 1, 0])
    empty = np.zeros(0, int)
    assert scorer.is_greedy({}, [(prompt, answer), (prompt, other), (prompt, empty)]) == [
      True, False, True,
    ]  # fmt: skip
  states = SCORER.greedy_states({}, np.array([1, 3]), 3)
  np.testing.assert_array_equal(states, [[4, 4, 4], [3, 4, 4], [3, 3, 4], [3, 3, 3]])


def test_an_empty_answer_is_certain():
  (got,) = AnswerScorer(ORACLE, oracle.MASK, batch=16)({}, [(np.array([1]), np.zeros(0, int))])
  assert (got.log_likelihood, got.standard_error, got.greedy) == (0, 0, True)


def test_guidance_mixes_logits_with_and_without_the_prompt():
  class Own:
    """Logits by the slot's own token, and the mean of the row's."""

    def __call__(self, params, tokens_BxW, *, ask_BxA, **_):
      hidden = params[tokens_BxW] + params[tokens_BxW[:, :1]]
      hidden = jnp.take_along_axis(hidden, ask_BxA[..., None], axis=1)
      return ModelOutput(LogitHead(hidden, jnp.eye(4)), None, {})

  params = np.asarray(jax.random.normal(jax.random.key(0), (4, 4)))
  scorer = AnswerScorer(Own(), 3, batch=1, cfg=0.5)
  (got,) = scorer(params, [(np.array([1]), np.array([2]))])
  cond, un = params[3] + params[1], params[3] + params[3]
  mixed = (un + 1.5 * (cond - un))[:3]
  want = mixed[2] - math.log(np.exp(mixed).sum())
  assert got.log_likelihood == pytest.approx(want, rel=1e-5)
  assert got.greedy == (mixed.argmax() == 2)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"draws": 10}, "draws=10 must be a multiple of 4"),
    ({"draws": 0}, "draws=0"),
    ({"cfg": -1.0}, "cfg=-1.0 must not be negative"),
    ({"estimator": "elbo"}, "known: exact_count, monte_carlo, llada, chain"),
    ({"attention": masks.Canvas(4)}, "attention Canvas is not covered"),
    ({"estimator": "llada", "attention": masks.BlockCausal(4)}, "not for attention BlockCausal"),
  ],
)
def test_scorers_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    AnswerScorer(ORACLE, oracle.MASK, **options)
