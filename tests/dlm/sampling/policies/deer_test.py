"""A drafter changes how many forwards a text takes, never the text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.sampling import drafts, loop
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


CACHED = {
  "blocks": Drafter(MODEL, masks.BlockCausal(4), MASK),
  "full": OTHER,
}
step = jax.jit(loop.step, static_argnums=0)
propose = jax.jit(drafts.propose, static_argnums=0)


@pytest.mark.parametrize("kind", CACHED)
def test_the_drafter_computes_settled_text_once(kind):
  """And drafts what it drafts without a cache, unless it sees all of its row; the text is the same.

  Before, it computed its whole row for every draft.
  """
  drafter, params, count = CACHED[kind], (params_of(), other_params()), 3
  deer = sampler(Deer(count), temperature=1.0, drafter=drafter)
  rows = [[1, 2, 3, 4, 5, 0, 2, 4] + [M] * 24, [4] * 15 + [M] * 15]
  state = step(deer, params, loop.start(deer, canvas_of(rows, slots=32)))
  cached, before, first = 0, 0, True
  while not state.canvas.done_B.all():
    kept = state.cache.drafts
    bare = state.replace(
      cache=state.cache.replace(drafts=kept.replace(filled_BxS=kept.filled_BxS & False))
    )
    rows_B, spent_B = ~state.canvas.done_B, state.canvas.queries_B
    got, without = (propose(deer, params, x, rows_B, state.canvas.key_B) for x in (state, bare))
    if kind != "full":
      np.testing.assert_array_equal(got.canvas.tokens_BxL, without.canvas.tokens_BxL)
    end_B = jnp.minimum(state.canvas.start_B + 1 + count, state.canvas.length_B)
    np.testing.assert_array_equal(without.canvas.queries_B - spent_B, end_B * rows_B)
    size_B = got.canvas.queries_B - spent_B
    assert first or int(size_B.max()) <= 2 * count + getattr(drafter.sees, "block", 1)
    cached, before, first = cached + int(size_B.sum()), before + int((end_B * rows_B).sum()), False
    state = step(deer, params, state)
  assert cached < before / 2
  plain = run(sampler(Introspective(1), temperature=1.0), params_of(), canvas_of(rows, slots=32))
  np.testing.assert_array_equal(state.canvas.tokens_BxL, plain.tokens_BxL)


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
  with pytest.raises(ValueError, match="a drafter goes with policies 'deer' and 'dflash' alone"):
    sampler(Deer(2))
  with pytest.raises(ValueError, match="a drafter goes with policies 'deer' and 'dflash' alone"):
    sampler(Introspective(2), drafter=SAME)
  with pytest.raises(ValueError, match="length=0 must be at least 1"):
    dataclasses.replace(Deer(), length=0)
