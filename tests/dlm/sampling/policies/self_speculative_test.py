"""One model that drafts for itself: fewer checks than tokens, and never another text."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dlm.models import LoraConfig, bind, lora
from dlm.sampling.caching import ExactBlock
from dlm.sampling.policies import Introspective, SelfSpeculative
from tests.dlm.models.small import jitter
from tests.dlm.sampling.policies.introspective_test import (
  MODEL,
  canvas_of,
  distance_to_law,
  params_of,
  run,
  sampler,
)

ADAPTED = bind(dataclasses.replace(MODEL.config, lora=LoraConfig(rank=2, alpha=8.0)))


@functools.cache
def with_adapters():
  """The same weights, and adapters beside them that change what the model drafts."""
  own = lora.adapters(jitter(jax.jit(ADAPTED.init)(jax.random.key(1))))
  return lora.joined(params_of(), jax.tree.map(lambda x: 5 * x, own))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_that_of_token_by_token_sampling(temperature):
  """Whether adapters help to draft or not: they change how many drafts are right."""
  plain = run(sampler(Introspective(1), temperature=temperature), params_of(), canvas_of())
  drafted = []
  for adapted, params in ((None, params_of()), (ADAPTED, with_adapters())):
    own = sampler(SelfSpeculative(4), temperature=temperature, adapted=adapted)
    out = run(own, params, canvas_of())
    np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
    checks_B = out.forwards_Bx3[:, 1]
    np.testing.assert_array_equal(out.drafts_B, checks_B)  # a forward of each kind in turn
    assert out.done_B.all() and checks_B.sum() < plain.forwards_Bx3[:, 1].sum()
    drafted.append(checks_B.tolist())
  assert drafted[0] != drafted[1]


def test_the_law_at_temperature_1_is_the_autoregressive_one():
  own = sampler(SelfSpeculative(3), temperature=1.0)
  distance, chance = distance_to_law(own, params_of())
  assert distance < chance.mean() + 5 * chance.std()


def test_drafts_that_are_not_sure_are_not_made():
  """None at all with threshold 1: every check settles one token, as token by token."""
  plain = run(sampler(Introspective(1)), params_of(), canvas_of())
  out = run(sampler(SelfSpeculative(4, threshold=1.0)), params_of(), canvas_of())
  np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
  np.testing.assert_array_equal(out.forwards_Bx3, plain.forwards_Bx3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"policy": SelfSpeculative(3), "plan": ExactBlock()}, "drafts, which needs cache 'rolling'"),
    ({"policy": SelfSpeculative(3), "guidance": 1.0}, "guidance=1.0 must be 0 where a model draf"),
  ],
)
def test_what_cannot_be_checked_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    sampler(**changes)
  with pytest.raises(ValueError, match="block=1 must be at least 2"):
    SelfSpeculative(1)
  with pytest.raises(ValueError, match=r"threshold=1.5 must lie in \[0, 1\]"):
    SelfSpeculative(4, 1.5)
