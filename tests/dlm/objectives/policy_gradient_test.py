"""What a run keeps of rows that it learns from several times."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import PolicyGradient
from dlm.objectives.estimators import (
  BlockExact,
  CountedElbo,
  CoupledElbo,
  FullMask,
  LeftToRight,
  Sandwich,
)
from dlm.types import LogitHead, ModelOutput
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


@dataclasses.dataclass(frozen=True)
class WithoutMask:
  """The authors of policy gradients leave the mask id in the softmax; the source has none."""

  denoise: Oracle

  def __call__(self, *args, **options):
    logits = self.denoise(*args, **options).head.hidden_BxAxD[..., : oracle.STATES]
    return ModelOutput(LogitHead(logits, jnp.eye(oracle.STATES)), None, {})


@pytest.mark.parametrize(
  ("estimator", "denoise"), [(BlockExact(block=2), Oracle()), (LeftToRight(), Oracle(ahead=1))]
)
def test_exact_estimates_are_the_likelihood_of_the_source(estimator, denoise):
  """Of a source that may be written in any order; the second block is prompt in part."""
  tokens = oracle.sample(5, 8)
  learned = np.tile(np.arange(8) >= 3, (5, 1))
  batch = oracle.rows(tokens).replace(noisable_BxL=learned)
  objective = PolicyGradient(MASK, estimator, ratio="none")
  noisy = oracle.corrupt(objective, 0, batch)
  found, _ = jax.jit(functools.partial(objective.estimate, WithoutMask(denoise)))({}, noisy)
  want = -np.where(learned, oracle.exact_nats(tokens), 0)
  assert not np.asarray(found)[~learned].any()
  np.testing.assert_allclose(found.sum(-1), want.sum(-1), rtol=1e-4)
  if isinstance(estimator, LeftToRight):
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Heated:
  """Its parameters are what each row's logits are multiplied by."""

  def __call__(self, params, *args, **options):
    head = Oracle()(None, *args, **options).head
    heat = jnp.repeat(params, len(head.hidden_BxAxD) // len(params))
    return ModelOutput(head.replace(hidden_BxAxD=heat[:, None, None] * head.hidden_BxAxD), None, {})


@pytest.mark.parametrize(
  "objective",
  [
    PolicyGradient(MASK, CoupledElbo(), ratio="row", per="row"),  # it scores what is behind the end
    PolicyGradient(MASK, Sandwich(masks="random", bound="upper"), ratio="none", per="length"),
  ],
  ids=lambda objective: type(objective.estimator).__name__,
)
def test_rows_that_the_judge_leaves_out_teach_nothing(objective):
  learned = np.tile(np.arange(8) < 6, (4, 1)) & np.array([[True], [True], [False], [False]])
  batch = oracle.rows(oracle.sample(4, 8)).replace(noisable_BxL=learned)
  noisy = oracle.corrupt(objective, 0, batch)
  loss = functools.partial(objective.loss, Heated())
  taught = jax.jit(jax.grad(lambda heat: loss(heat, noisy)[0].total))(jnp.ones(4))
  np.testing.assert_array_equal(np.asarray(taught) != 0, [True, True, False, False])
