"""Experts that refuse what exceeds their capacity; the choice itself is tested in moe_test.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import MoeConfig
from dlm.models.moe.token_choice import capacity, drop_rank, keep, token_choice
from tests.dlm.models.small import dense_logits, init, jitter, random_tokens, slots_like, variant

TIGHT = MoeConfig(experts=4, per_token=2, mlp=6, capacity_factor=1.0, renormalise=True)


def routed(moe: MoeConfig, live_T, places: int, seed: int = 0):
  logits = jnp.asarray(np.random.default_rng(seed).normal(size=(8, 4)), jnp.float32)
  chosen, weight = token_choice(moe, logits, None)
  return chosen, weight, *keep(chosen, weight, weight, live_T, moe.experts, places)


def test_capacity_is_an_even_share_times_the_factor_rounded_up():
  assert [capacity(64, 8, 1.25), capacity(65, 8, 1.25), capacity(63, 9, 1.0)] == [10, 11, 7]


def test_an_expert_keeps_its_largest_weights_as_they_are():
  live = jnp.ones(8, bool).at[5].set(False)
  chosen, weight, slots, kept = routed(TIGHT, live, 3)
  for e in range(4):
    wanted = [(t, k) for t in range(8) for k in range(2) if chosen[t, k] == e and live[t]]
    best = sorted(wanted, key=lambda tk: -weight[tk])[:3]
    assert {tk for tk in wanted if kept[tk]} == set(best)
    places = zip(slots.token_ExC[e], slots.gates_ExC[e], strict=True)
    gates = {int(t): float(gate) for t, gate in places if gate > 0}
    assert gates == {t: float(weight[t, k]) for t, k in best}
  assert not kept.all() and not kept[5].any()


def test_of_equal_weights_the_first_token_is_kept():
  chosen = jnp.zeros((5, 1), jnp.int32)
  slots, kept = keep(chosen, jnp.ones((5, 1)), jnp.ones((5, 1)), jnp.ones(5, bool), 2, 2)
  assert kept[:, 0].tolist() == [True, True, False, False, False]
  assert slots.gates_ExC.tolist() == [[1, 1], [0, 0]]


def test_a_bias_on_logits_chooses_and_ranks_but_does_not_weigh():
  moe = MoeConfig(experts=4, per_token=2, mlp=6, bias=True, bias_to="logits")
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
  bias = jnp.array([0.0, 9.0, 0.0, 0.0])
  chosen, weight = token_choice(moe, logits, bias)
  assert (chosen[:, 0] == 1).all()
  score = jnp.take_along_axis(jax.nn.softmax(logits), chosen, axis=1)
  np.testing.assert_allclose(weight, score, rtol=1e-6)
  rank = drop_rank(moe, logits, bias, chosen, weight)
  want = jax.nn.softmax(jnp.take_along_axis(logits + bias[None], chosen, axis=1))
  np.testing.assert_allclose(rank, want, rtol=1e-6)
  plain = dataclasses.replace(moe, bias_to="score")
  np.testing.assert_array_equal(drop_rank(plain, logits, bias, chosen, weight), weight)


def test_weights_grow_to_match_shared_experts():
  moe = MoeConfig(experts=8, per_token=2, mlp=1, shared=2, renormalise=True, match_shared=True)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
  _, weight = token_choice(moe, logits, None)
  np.testing.assert_allclose(weight.sum(1), 1.9111, atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_layers_drop_what_exceeds_capacity_and_say_so(factor):
  """With room for all it is the model without a capacity."""
  model = variant(moe=dataclasses.replace(TIGHT, capacity_factor=factor))
  params, tokens = jitter(init(model)), random_tokens(2, 8)
  params["layers"]["moe"]["router"]["kernel"] *= 20
  slot = slots_like(tokens)
  mask = masks.within(masks.Full()(slot, 8), jnp.array([8, 6]))

  def run(model):
    out = jax.jit(functools.partial(model, slot_BxW=slot, mask=mask))(params, tokens)
    return dense_logits(out.head), out.aux

  logits, facts = run(model)
  load, dropped = np.asarray(facts["load_YxE"]), facts["dropped_Y"]
  assert (load.sum(1) == 2 * 14).all()
  places = min(capacity(32, 4, factor), 16)
  np.testing.assert_allclose(dropped, np.maximum(load - places, 0).sum(1) / 28, atol=1e-6)
  np.testing.assert_allclose(facts["per_token_Y"], 2 * (1 - dropped), rtol=1e-5)
  assert (dropped > 0).any() == (factor == 1.0)
  if factor == 100.0:
    plain = variant(moe=dataclasses.replace(TIGHT, capacity_factor=0.0))
    np.testing.assert_allclose(logits[0], run(plain)[0][0], rtol=1e-4, atol=1e-5)
