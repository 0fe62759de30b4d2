"""A drafter changes how many forwards a text takes, never the text."""

import dataclasses

import numpy as np
import pytest

from dlm import masks
from dlm.sampling.policies import Deer, Introspective
from dlm.sampling.sampler import Drafter
from tests.dlm.sampling.policies.introspective_test import (
  MASK,
  MODEL,
  M,
  canvas_of,
  distance_to_law,
  params_of,
  run,
  sampler,
)

SAME = Drafter(MODEL, masks.Causal(), MASK, shift=1)  # the model itself: its first draft is right
OTHER = Drafter(MODEL, masks.Full(), MASK)


def other_params():
  params = params_of()
  return params | {"embed": params["embed"][::-1]}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", [SAME, OTHER], ids=["same", "other"])
def test_the_text_is_that_of_token_by_token_sampling(drafter, temperature):
  plain = run(sampler(Introspective(1), temperature=temperature), params_of(), canvas_of())
  drafting = params_of() if drafter is SAME else other_params()
  deer = sampler(Deer(4), temperature=temperature, drafter=drafter)
  out = run(deer, (params_of(), drafting), canvas_of())
  np.testing.assert_array_equal(out.tokens_BxL, plain.tokens_BxL)
  assert out.done_B.all() and (out.drafts_B <= out.forwards_Bx3[:, 1]).all()
  assert (out.forwards_Bx3.sum(-1) <= plain.forwards_Bx3.sum(-1)).all()
  if drafter is SAME:  # a draft that follows the settled token is the model's own token
    assert (out.forwards_Bx3[:2, 1] <= (plain.forwards_Bx3[:2, 1] + 1) // 2).all()


def test_the_law_at_temperature_1_is_the_autoregressive_one():
  deer = sampler(Deer(2), temperature=1.0, drafter=OTHER)
  distance, chance = distance_to_law(deer, (params_of(), other_params()))
  assert distance < chance.mean() + 5 * chance.std()


def test_a_row_alone_equals_the_row_in_a_batch():
  deer = sampler(Deer(3), temperature=1.0, drafter=OTHER)
  params = (params_of(), other_params())
  together = run(deer, params, canvas_of())
  rows = [[1, 2, 3] + [M] * 9, [4] * 7 + [M] * 5]
  for i, row in enumerate(rows):
    alone = run(deer, params, canvas_of([row], [i]))
    for name in ("tokens_BxL", "forwards_Bx3", "drafts_B", "queries_B"):
      np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_a_drafter_goes_with_its_policy_alone():
  with pytest.raises(ValueError, match="a drafter goes with policy 'deer' and no other"):
    sampler(Deer(2))
  with pytest.raises(ValueError, match="a drafter goes with policy 'deer' and no other"):
    sampler(Introspective(2), drafter=SAME)
  with pytest.raises(ValueError, match="length=0 must be at least 1"):
    dataclasses.replace(Deer(), length=0)
