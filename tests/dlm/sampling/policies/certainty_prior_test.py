"""Confidence weighted by how much is known around a slot, against sums by hand."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from dlm.sampling.policies import CertaintyPrior
from tests.dlm.sampling.loop_test import MASK, ROWS, SLOTS, VOCAB, canvas_of, run, sampler
from tests.dlm.sampling.policies.views import view_of
from tests.dlm.sampling.table import logits_by_hand, random_table


def density_by_hand(known, sigma):
  """Summed over slots from far before the row, all known, to far behind it, as its last slot."""
  far = 100
  spread = np.concatenate([np.ones(far), known, np.full(far, known[-1])])
  slots = np.arange(len(spread)) - far
  phi = np.exp(-((slots[None] - np.arange(len(known))[:, None]) ** 2) / (2 * sigma**2))
  return (phi * spread).sum(-1) / phi.sum(-1)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("last", [True, False])
def test_the_density_is_the_known_share_of_a_gaussian(sigma, last):
  known = np.array([True, False, True, False, False, False, True, last])
  padding = [False] * 3
  inside = np.array([[True] * 8 + padding])
  view = view_of(np.ones((1, 11)), [[*~known, *padding]], inside_BxA=inside)
  got = jax.jit(CertaintyPrior(sigma=sigma).density)(view)[0, :8]
  np.testing.assert_allclose(got, density_by_hand(known, sigma), atol=1e-6)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_the_loop_writes_the_best_of_confidence_times_density(sigma):
  params = random_table(1, SLOTS, VOCAB)
  out = run(sampler(CertaintyPrior(sigma=sigma), block=SLOTS), params, canvas_of(ROWS, block=SLOTS))
  for i, given in enumerate(ROWS):
    row, when, turn = np.array(given), np.full(len(given), -1), 0
    while (row == MASK).any():
      logits = logits_by_hand(params, row)
      logits[:, MASK] = -np.inf
      p = softmax(logits, -1)
      score = np.where(row == MASK, p.max(-1) * density_by_hand(row != MASK, sigma), -1)
      best, turn = int(score.argmax()), turn + 1
      row[best], when[best] = p[best].argmax(), turn
    np.testing.assert_array_equal(out.tokens_BxL[i, : len(row)], row)
    np.testing.assert_array_equal(out.when_BxL[i, : len(row)], when)


@pytest.mark.parametrize(
  ("fields", "message"), [({"k": 0}, "k=0 must be"), ({"sigma": 0.0}, "sigma=0.0 must be")]
)
def test_bad_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    CertaintyPrior(**fields)
