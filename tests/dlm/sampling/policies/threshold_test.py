"""dInfer's threshold: a band below the best, a threshold that falls, and [MASK] as no candidate."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlm.sampling.policies import Threshold
from tests.dlm.sampling.policies.views import MASK, keys, view_of


def written(policy, prob, masked=None, **fields):
  view = view_of([prob], [[1] * len(prob) if masked is None else masked], **fields)
  decision, _ = policy.decide(view, (), keys(1))
  return np.flatnonzero(decision.write_BxA[0]).tolist()


def test_the_band_takes_what_is_nearly_the_best():
  prob = [0.5, 0.499995, 0.4, 0.500001]
  assert written(Threshold(0.9), prob) == [3]
  assert written(Threshold(0.9, band=1e-5), prob) == [0, 1, 3]
  assert written(Threshold(0.9, band=1e-5), prob, masked=[1, 1, 1, 0]) == [0, 1]
  assert written(Threshold(0.3, band=1e-5), prob) == [0, 1, 2, 3]
  assert written(Threshold(0.9, band=1e-5), prob, masked=[0] * 4) == []


def test_a_slot_that_asks_for_a_mask_is_no_candidate():
  token = [[0, MASK, 2]]
  assert written(Threshold(0.9), [0.5, 0.95, 0.6], token=token) == [2]
  assert written(Threshold(0.9), [0.5, 0.95], token=[[MASK, MASK]]) == []


def test_the_threshold_falls_from_one_with_the_forwards_of_the_row():
  prob, policy = [0.95, 0.85, 0.65], Threshold(0.7, decay=0.1)
  for turn, want in ((0, [0]), (1, [0]), (2, [0, 1]), (3, [0, 1]), (9, [0, 1])):
    assert written(policy, prob, turn_B=jnp.array([turn])) == want
  assert written(Threshold(0.7), prob) == [0, 1]


def test_a_block_may_be_left_after_so_many_forwards():
  for step, leaves in ((0, False), (1, True)):
    view = view_of([[0.5, 0.4]], [[1, 1]], step_B=jnp.array([step]))
    decision, _ = Threshold(0.9, steps=2).decide(view, (), keys(1))
    assert bool(decision.leave_B[0]) == leaves
  assert Threshold(0.9).decide(view, (), keys(1))[0].leave_B is None


@pytest.mark.parametrize("field", ["band", "decay", "steps"])
def test_bad_settings_are_refused(field):
  with pytest.raises(ValueError, match=f"threshold: {field}=-0.1 must not be negative"):
    Threshold(0.9, **{field: -0.1})
