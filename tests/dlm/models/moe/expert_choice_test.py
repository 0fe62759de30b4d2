"""Choices against a slow twin, and what is promised of them: load, padding, order, rows alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.models import MoeConfig
from dlm.models.moe import capacity, gate_scales
from dlm.models.moe.expert_choice import choose, pack

PLAIN = MoeConfig(experts=4, per_token=2, mlp=1, shared=2, choice="expert", renormalise=True)
P, S, E = 3, 10, 4


def twin_gates(moe: MoeConfig, logits_SxE, live_S, count: int):
  """One pool in float64: gates [S, E], 0 where an expert did not choose the token."""
  logits_SxE = np.asarray(logits_SxE, np.float64)
  prob_SxE = np.exp(logits_SxE) / np.exp(logits_SxE).sum(1, keepdims=True)
  score_SxE = prob_SxE if moe.score == "softmax" else 1 / (1 + np.exp(-logits_SxE))
  rank_SxE = logits_SxE if moe.renormalise else score_SxE
  gates_SxE = np.zeros_like(logits_SxE)
  for e in range(moe.experts):
    places = sorted(np.flatnonzero(live_S), key=lambda s: (-rank_SxE[s, e], s))[:count]
    gates_SxE[places, e] = score_SxE[places, e]
  choosers_S = (gates_SxE > 0).sum(1)
  if moe.renormalise:
    gates_SxE /= gates_SxE.sum(1, keepdims=True) + 1e-20
  if moe.match_shared:
    gates_SxE *= np.array(gate_scales.by_choosers(moe.experts, moe.shared))[choosers_S, None]
  if moe.gate_scales:
    gates_SxE *= np.array(moe.gate_scales)[choosers_S, None]
  return moe.scale * gates_SxE


@functools.partial(jax.jit, static_argnums=(0, 4))
def chosen(moe, logits_PxSxE, live_PxS, count_P, places):
  """Gates [P, S, E] as packed slots have them, and how many chose each token."""
  pools, size, experts = logits_PxSxE.shape
  choice = choose(moe, logits_PxSxE, live_PxS, count_P, places)
  slots = pack(choice, count_P, jnp.arange(pools) * size, pools * places)
  gates_TxE = jnp.zeros((pools * size, experts))
  gates_TxE = gates_TxE.at[slots.token_ExC, jnp.arange(experts)[:, None]].add(slots.gates_ExC)
  return gates_TxE.reshape(pools, size, experts), choice.choosers_PxS


def drawn(seed: int = 0, pools: int = P):
  logits = np.random.default_rng(seed).normal(size=(pools, S, E)).astype(np.float32)
  return jnp.asarray(logits), jnp.ones((pools, S), bool)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"renormalise": False},
    {"score": "sigmoid"},
    {"score": "sigmoid", "renormalise": False},
    {"scale": 2.5},
    {"match_shared": True},
    {"gate_scales": (1.0, 0.5, 1.25, 2.0, 3.5)},
  ],
  ids=lambda changes: " ".join(changes) or "plain",
)
def test_choices_equal_their_slow_twin(changes):
  """Pools that take 5, 2 and 0 tokens an expert, one of them with padding."""
  moe = dataclasses.replace(PLAIN, **changes)
  logits, live = drawn()
  live = live.at[1, 3:].set(False).at[2].set(False)
  count = [5, 2, 0]
  gates, choosers = chosen(moe, logits, live, jnp.array(count), 6)
  want = np.stack([twin_gates(moe, logits[p], live[p], count[p]) for p in range(P)])
  np.testing.assert_allclose(gates, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(choosers, (want > 0).sum(-1))
  assert not gates[1, 3:].any() and not gates[2].any()


def test_the_published_example_by_hand():
  """EC-DLM: two experts take two of four tokens each."""
  moe = dataclasses.replace(PLAIN, experts=2, per_token=1)
  logits = jnp.array([[[2.0, 0], [1, 3], [0, -1], [-1, 1]]])
  gates, _ = chosen(moe, logits, jnp.ones((1, 4), bool), jnp.array([2]), 2)
  np.testing.assert_allclose(gates[0], [[1, 0], [0.1192, 0.8808], [0, 0], [0, 1]], atol=1e-4)
  table = gate_scales.by_choosers(2, 2)
  scaled, _ = chosen(
    dataclasses.replace(moe, match_shared=True), logits, jnp.ones((1, 4), bool), jnp.array([2]), 2
  )
  factors = np.array([[table[1]], [table[2]], [1], [table[1]]])
  np.testing.assert_allclose(scaled[0], factors * gates[0], rtol=1e-6)


def test_published_factors():
  eight = [1, 1.4142, 1.7995, 2.0806, 2.3206, 2.5166, 2.7022, 2.8729, 3.0265]
  np.testing.assert_allclose(gate_scales.by_choosers(8, 2), eight, atol=5e-5)
  assert gate_scales.of_best(8, 2, 2) == pytest.approx(1.9111, abs=5e-5)
  assert gate_scales.of_best(64, 8, 2) == pytest.approx(3.6313, abs=5e-5)


@pytest.mark.parametrize("logits", ["random", "all want one token", "equal"])
def test_load_is_even_whatever_the_router_says(logits):
  found, live = drawn()
  if logits == "all want one token":
    found = found.at[:, 4].add(100.0)
  if logits == "equal":
    found = jnp.zeros_like(found)
  gates, _ = chosen(PLAIN, found, live, jnp.array([5, 3, 1]), 5)
  load_E = (gates > 0).sum((0, 1))
  assert load_E.max() / load_E.mean() == 1.0 and load_E[0] == 9


def test_of_equal_tokens_the_lowest_position_is_chosen():
  gates, _ = chosen(PLAIN, jnp.zeros((1, S, E)), jnp.ones((1, S), bool), jnp.array([3]), 3)
  assert (gates[0, :3] == 0.25).all() and not gates[0, 3:].any()


def test_tokens_and_pools_may_change_places():
  """No two logits are equal, so positions do not matter."""
  logits, live = drawn()
  live, count = live.at[0, 7:].set(False), jnp.array([3, 4, 2])
  want, _ = chosen(PLAIN, logits, live, count, 5)
  order_S, order_P = jnp.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7]), jnp.array([2, 0, 1])
  turned, _ = chosen(PLAIN, logits[:, order_S], live[:, order_S], count, 5)
  np.testing.assert_array_equal(turned, want[:, order_S])
  turned, _ = chosen(PLAIN, logits[order_P], live[order_P], count[order_P], 5)
  np.testing.assert_array_equal(turned, want[order_P])
  for p in range(P):
    alone, _ = chosen(PLAIN, logits[p : p + 1], live[p : p + 1], count[p : p + 1], 5)
    np.testing.assert_array_equal(alone[0], want[p])


@pytest.mark.parametrize("changes", [{}, {"score": "sigmoid"}, {"renormalise": False}])
def test_gradients_are_finite_and_those_of_the_chosen_alone(changes):
  moe = dataclasses.replace(PLAIN, **changes)
  logits, live = drawn()
  live, count = live.at[2].set(False), jnp.array([2, 4, 0])
  weight = jnp.asarray(np.random.default_rng(1).normal(size=(P, S, E)), jnp.float32)

  def total(logits):
    gates, choosers = chosen(moe, logits, live, count, 4)
    return (gates * weight).sum(), choosers

  gradient, choosers = jax.grad(total, has_aux=True)(logits)
  assert np.isfinite(gradient).all()
  unchosen = np.asarray(choosers) == 0
  assert unchosen[:2].any() and not np.asarray(gradient)[unchosen].any()
  assert np.asarray(gradient)[np.asarray(choosers) > 1].any()


def test_gates_come_in_the_type_of_the_logits():
  logits, live = drawn()
  choice = choose(PLAIN, logits.astype(jnp.bfloat16), live, jnp.array([3, 3, 3]), 3)
  assert choice.gates_PxExC.dtype == jnp.bfloat16


def test_slots_are_packed_without_gaps():
  logits, live = drawn()
  count = jnp.array([2, 0, 3])
  slots = pack(choose(PLAIN, logits, live, count, 4), count, jnp.arange(P) * S, 12)
  assert slots.used == 5
  assert (slots.token_ExC[:, :2] < S).all()
  assert ((slots.token_ExC[:, 2:5] >= 2 * S) & (slots.token_ExC[:, 2:5] < 3 * S)).all()
  assert (slots.gates_ExC[:, :5] > 0).all() and not slots.gates_ExC[:, 5:].any()


def test_capacity_and_choice_agree_on_the_room():
  """Every pool may ask for the most: the last size holds it."""
  moe = dataclasses.replace(PLAIN, schedule="linear", per_token_range=(1, 3))
  sizes = capacity.buffer_sizes(moe, P, S)
  most = capacity.tokens_per_expert(jnp.array([3] * P), jnp.array([S] * P), E)
  assert sizes[-1] == most.sum() and sizes[0] == P * (S // E)
