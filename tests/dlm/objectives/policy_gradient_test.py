"""What a run keeps of rows that it learns from several times."""

import functools

import jax
import numpy as np
import pytest

from dlm.objectives import PolicyGradient
from dlm.objectives.estimators import CountedElbo, FullMask, Sandwich
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Oracle

ESTIMATORS = {
  "guided": FullMask(prompt_mask=0.0, guidance=0.5),
  "linear": CountedElbo(draws=2),
  "not linear": Sandwich(masks="random", share=(0.2, 0.8), prompt_mask=0.0),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_has_changed_before_the_first_update(name):
  """What is remembered is what the loss estimates of the same model: all ratios are 1."""
  objective = PolicyGradient(MASK, ESTIMATORS[name], ratio="token")
  noisy = oracle.corrupt(objective, 0, oracle.rows(oracle.sample(4, 8)))
  old_BxL = jax.jit(functools.partial(objective.remembered, Oracle()))({}, noisy)["old_BxL"]
  loss = jax.jit(functools.partial(objective.loss, Oracle()))
  first, _ = loss({}, noisy)
  again, _ = loss({}, noisy.replace(extra=noisy.extra | {"old_BxL": old_BxL}))
  assert np.ptp(old_BxL) > 0.1
  np.testing.assert_allclose(again.metrics["ratio"], 1, rtol=1e-6)
  np.testing.assert_allclose(again.total, first.total, rtol=1e-5, atol=1e-6)
