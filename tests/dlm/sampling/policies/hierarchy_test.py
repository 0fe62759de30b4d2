"""The surest of every run of masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlm.sampling.policies import Hierarchy
from tests.dlm.sampling.policies.views import keys, view_of

PROB = [0.5, 0.6, 0.9, 0.35, 0.3, 0.9, 0.2, 0.6]
MASKED = [1, 1, 0, 1, 1, 0, 1, 1]  # three runs


def written(policy, prob=PROB, masked=MASKED, **fields):
  view = view_of([prob], [masked], **fields)
  decision, _ = policy.decide(view, policy.enter(view.masked_BxA, None), keys(1))
  np.testing.assert_array_equal(decision.token_BxA, view.stats.token)
  return np.flatnonzero(decision.write_BxA[0]).tolist()


def test_the_surest_of_a_run_is_written_where_it_is_sure_enough():
  assert written(Hierarchy(0.8, 0.32)) == [1, 3, 7]
  assert written(Hierarchy(0.8, 0.4)) == [1, 7], "0.35 is the best of its run, and too low"
  assert written(Hierarchy(0.45, 0.4)) == [0, 1, 7], "0.5 is not the best, and sure"


def test_the_surest_of_all_is_always_written():
  assert written(Hierarchy(0.8, 0.7)) == [1]  # of two equal ones the leftmost
  assert written(Hierarchy(0.8, 0.7), masked=[0, 0, 0, 1, 1, 0, 1, 0]) == [3]
  assert written(Hierarchy(0.8, 0.7), masked=[0] * 8) == []


def test_a_threshold_is_not_reached_by_what_equals_it():
  assert written(Hierarchy(0.5, 0.5), prob=[0.5, 0.5, 0.25, 0.75], masked=[1, 1, 0, 1]) == [3]


def test_equals_a_loop_over_runs():
  rng = np.random.default_rng(0)
  for _ in range(20):
    prob, masked = rng.uniform(size=12), rng.uniform(size=12) < 0.7
    want, start = set(), None
    for i in range(13):
      if i < 12 and masked[i]:
        start = i if start is None else start
      elif start is not None:
        best = max(range(start, i), key=lambda j: prob[j])
        want |= {best} if prob[best] > 0.4 else set()
        start = None
    want |= {i for i in range(12) if masked[i] and prob[i] > 0.8}
    if masked.any():
      want.add(max(np.flatnonzero(masked), key=lambda j: prob[j]))
    assert written(Hierarchy(0.8, 0.4), prob, masked) == sorted(want)


def test_the_threshold_falls_with_the_forwards_of_the_row():
  policy = Hierarchy(0.4, 0.9, decay=0.1)
  assert written(policy) == [1]
  assert written(policy, turn_B=jnp.array([5])) == [1, 7]  # 0.5: not surer
  assert written(policy, turn_B=jnp.array([9])) == [0, 1, 7]


@pytest.mark.parametrize(
  ("fields", "message"),
  [({"threshold": 2.0}, "threshold=2.0"), ({"low": -1.0}, "low=-1.0"), ({"decay": -1.0}, "decay")],
)
def test_bad_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=f"hierarchy: {message}"):
    Hierarchy(**fields)
