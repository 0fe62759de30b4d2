"""MDPO's remasking by hand: what is masked again is what was least sure when it was written."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlm.sampling.policies import RunningConfidence
from tests.dlm.sampling.policies.views import MASK, keys, view_of


def test_the_least_sure_are_masked_again_by_what_they_were_when_written():
  policy, masked, state = RunningConfidence(4), np.ones((1, 4), bool), None
  state = policy.enter(jnp.asarray(masked), None)
  for step, (prob, left) in enumerate([
    ([0.9, 0.2, 0.6, 0.5], [1, 2, 3]),  # one of four stays
    ([0.1, 0.4, 0.8, 0.3], [1, 3]),  # the first keeps its 0.9, whatever is said of it now
    ([0.1, 0.95, 0.1, 0.85], [2]),  # the third was written at 0.8, and falls behind
    ([0.1, 0.1, 0.05, 0.1], []),
  ]):  # fmt: skip
    view = view_of([prob], masked, step_B=jnp.array([step]))
    decision, state = policy.decide(view, state, keys(1))
    write, token = np.asarray(decision.write_BxA), np.asarray(decision.token_BxA)
    masked = np.where(write, token == MASK, masked)
    assert np.flatnonzero(masked[0]).tolist() == left


def test_what_is_given_does_not_count():
  view = view_of([[0.9, 0.8, 0.7, 0.6]], [[0, 1, 1, 1]])
  view = view.replace(open_BxA=jnp.array([[False, True, True, True]]))
  decision, _ = RunningConfidence(2).decide(view, jnp.zeros((1, 4)), keys(1))
  assert decision.write_BxA.tolist() == [[False, True, True, False]], "one of three, rounded down"
  with pytest.raises(ValueError, match="running_confidence: steps=0 must be at least 1"):
    RunningConfidence(0)
