"""Both entropy rules, against the words of their authors' code."""

import numpy as np
import pytest

from dlm.sampling.policies import EntropyBounded
from tests.dlm.sampling.policies.views import keys, view_of

ENTROPY = [[0.30, 0.02, 0.05, 0.60, 0.04, 0.01], [0.9, 0.8, 0.7, 0.01, 0.02, 0.6]]
PROB = [[0.90, 0.99, 0.97, 0.70, 0.98, 0.95], [0.5, 0.6, 0.7, 0.99, 0.99, 0.8]]
MASKED = [[True] * 5 + [False], [True, True, True, False, False, True]]


def written(policy):
  view = view_of(PROB, MASKED, entropy=ENTROPY)
  return np.asarray(policy.decide(view, (), keys(2))[0].write_BxA)


def by_hand(policy, entropy, prob, masked):
  """One row, one token at a time."""
  todo = [i for i in range(len(masked)) if masked[i]]
  todo.sort(key=lambda i: entropy[i] if policy.order == "entropy" else -prob[i])
  taken = [todo[0]]
  for i in todo[1:]:
    values = [entropy[j] for j in [*taken, i]]
    sum_, excess = sum(values), sum(values) - max(values)
    if excess > policy.budget if policy.rule == "excess" else sum_ >= policy.budget:
      break
    taken.append(i)
  return [i in taken for i in range(len(masked))]


@pytest.mark.parametrize("rule", ["excess", "total"])
@pytest.mark.parametrize("order", ["entropy", "confidence"])
@pytest.mark.parametrize("budget", [0.0, 0.01, 0.1, 0.105, 0.12, 0.35, 1.05, 9.0])
def test_the_longest_prefix_within_the_budget(rule, order, budget):
  policy = EntropyBounded(budget, rule, order)
  want = [by_hand(policy, *row) for row in zip(ENTROPY, PROB, MASKED, strict=True)]
  np.testing.assert_array_equal(written(policy), want)


def test_what_each_rule_counts():
  """Row 0 by entropy: .02 .04 .05 .30 .60. Excess spares the largest; total counts all."""
  excess, total = written(EntropyBounded(0.06)), written(EntropyBounded(0.06, "total"))
  assert np.flatnonzero(excess[0]).tolist() == [1, 2, 4]  # .02 + .04 <= .06
  assert np.flatnonzero(total[0]).tolist() == [1]  # .02 + .04 is not below .06
  assert excess[1].sum() == total[1].sum() == 1, "one token though none fits the budget"


def test_the_first_that_fails_ends_the_run():
  """By confidence the fourth is too uncertain, and the fifth, which would fit, waits."""
  view = view_of([[0.9, 0.8, 0.7, 0.6]], [[True] * 4], entropy=[[0.1, 0.1, 2.0, 0.0]])
  policy = EntropyBounded(0.5, "total", "confidence")
  assert policy.decide(view, (), keys(1))[0].write_BxA.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"budget": -1.0}, "budget=-1.0"),
    ({"budget": float("nan")}, "budget=nan"),
    ({"rule": "sum"}, "excess, total"),
    ({"order": "margin"}, "entropy, confidence"),
  ],
)
def test_bad_settings_are_refused_by_name(fields, message):
  with pytest.raises(ValueError, match=message):
    EntropyBounded(**fields)
