"""Prophet's answer: which slots its mean gap is taken over."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlm.sampling.policies import Fixed, Prophet
from tests.dlm.sampling.policies.views import keys, view_of

# Two slots of prompt, six of answer; gaps of the two best logits 0 (prompt), 1, 2, 3, 4, 5, 6.
GAPS = [0, 0, 1, 2, 3, 4, 5, 6]
OPEN = [slot >= 2 for slot in range(8)]


def view():
  best = np.full((1, 8), 0.5)
  return view_of(best, [OPEN], top2=best * np.exp(-np.array(GAPS)), open_BxA=jnp.array([OPEN]))


@pytest.mark.parametrize(
  ("start", "length", "gap"),
  [
    (0, 3, 2.0),
    (2, 5, 4.5),  # the row ends before the region does
    (-3, 5, 1.5),  # slots before the answer do not count
    (-5, 5, -np.inf),
    (6, 5, -np.inf),
  ],
)
def test_the_gap_is_the_mean_over_the_slots_of_the_region_in_the_answer(start, length, gap):
  policy = Prophet(Fixed(k=1), steps=8, answer_start=start, answer_length=length)
  np.testing.assert_allclose(policy.gap(view())[0], gap, rtol=1e-6)


def test_an_answer_without_a_slot_never_ends_the_row():
  thresholds = {"early": 0.0, "mid": 0.0, "late": 0.0}
  for start, ends in ((-5, False), (-4, True)):
    policy = Prophet(Fixed(k=1), steps=8, answer_start=start, **thresholds)
    state = policy.enter(view().masked_BxA, None)
    assert bool(policy.decide(view(), state, keys(1))[0].stop_B[0]) == ends
