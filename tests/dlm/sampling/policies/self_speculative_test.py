"""One model that drafts for itself: fewer checks than tokens, and never another text."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dlm.models import LoraConfig, bind, lora
from dlm.sampling import drafts, loop
from dlm.sampling.caching import ExactBlock
from dlm.sampling.policies import Introspective, SelfSpeculative
from tests.dlm.models.small import jitter
from tests.dlm.sampling.policies.introspective_test import (
  MASK,
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


def test_greedy_text_is_that_of_token_by_token_decoding():
  """Whatever the adapters that help to draft have learned: they are off while it checks."""
  plain = run(sampler(Introspective(1)), params_of(), canvas_of())
  out = run(sampler(SelfSpeculative(4), adapted=ADAPTED), with_adapters(), canvas_of())
  np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
  checks_B = out.forwards_Bx3[:, 1]
  np.testing.assert_array_equal(out.drafts_B, checks_B)  # a forward of each kind in turn
  assert out.done_B.all() and checks_B.sum() < plain.forwards_Bx3[:, 1].sum()


def test_what_is_drafted():
  """With adapters other tokens; with a threshold that nothing exceeds none."""
  canvas = canvas_of()
  drafted = []
  for params, threshold in ((params_of(), 0.0), (with_adapters(), 0.0), (params_of(), 1.0)):
    adapted = None if params is params_of() else ADAPTED
    own = sampler(SelfSpeculative(4, threshold), adapted=adapted)
    propose = jax.jit(functools.partial(drafts.propose_itself, own))
    out = propose(params, loop.start(own, canvas), canvas.start_B > 0, canvas.key_B)
    drafted.append(np.asarray(out.tokens_BxL))
    np.testing.assert_array_equal(out.drafts_B, [1, 1, 0, 1, 1])
  plain, helped, none = drafted
  assert (plain[0, 4:7] != MASK).all() and (plain[0, 7:12] == MASK).all()
  assert (plain != helped).any() and (none == np.asarray(canvas.tokens_BxL)).all()


def test_the_law_at_temperature_1_is_the_autoregressive_one():
  own = sampler(SelfSpeculative(3), temperature=1.0)
  distance, chance = distance_to_law(own, params_of(), length=3)
  assert distance < chance.mean() + 5 * chance.std()


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
