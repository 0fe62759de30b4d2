"""RND1: how many tokens stay masked after each forward, which, and when a block ends."""

import numpy as np
import pytest

from dlm.sampling.policies import Rnd1
from tests.dlm.sampling.policies.views import keys, view_of

ENTROPY = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6, 0.0])
PROB = 1 - ENTROPY / 2


def run(policy, forwards):
  """Masks after each forward, of one row of ten."""
  masked, seen = np.ones((1, 10), bool), []
  state = policy.enter(masked, None)
  for step in range(forwards):
    view = view_of(PROB[None], masked, entropy=ENTROPY[None], step_B=np.array([step]))
    decision, state = policy.decide(view, state, keys(1))
    masked = masked & ~np.asarray(decision.write_BxA)
    seen.append(masked[0])
    assert bool(decision.leave_B[0]) == (step + 1 >= policy.steps)
  return np.array(seen)


@pytest.mark.parametrize("steps", [1, 3, 4, 10, 14])
def test_the_least_certain_stay_masked(steps):
  masked = run(Rnd1(steps), steps)
  # Of 10: floor(10 * (1 - k / steps)).
  assert masked.sum(-1).tolist() == [10 * (steps - k) // steps for k in range(1, steps + 1)]
  for each in masked:
    assert set(np.flatnonzero(each)) == set(np.argsort(-ENTROPY)[: each.sum()])


def test_a_budget_writes_the_surest_and_the_last_forward_all():
  """By probability: .0 .1 .2 .3 .4 ...; within the budget are sums without their largest."""
  masked = run(Rnd1(3, budget=0.3), 3)
  assert masked.sum(-1).tolist() == [6, 5, 0]
  assert np.flatnonzero(masked[0]).tolist() == [0, 2, 4, 6, 7, 8]


@pytest.mark.parametrize(
  ("fields", "message"),
  [({"steps": 0}, "steps=0 must be at least 1"), ({"budget": -1.0}, "budget=-1.0 must not be neg")],
)
def test_what_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    Rnd1(**fields)
