"""The compute of experts against a loop over all of them, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.models.moe.experts import Experts, Routing, Slots, apply_experts, apply_slots
from dlm.models.moe.grouped import grouped_product
from dlm.models.moe.token_choice import route


def random_experts(rng, experts=5, width=4, mlp=3) -> Experts:
  shapes = [(experts, width, mlp), (experts, width, mlp), (experts, mlp, width)]
  return Experts(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


def loop_over_experts(x_TxD, routing: Routing, experts: Experts):
  """Every expert computes every token; a one-hot of its pairs says what counts."""
  y_TxD = jnp.zeros_like(x_TxD)
  for e in range(len(experts.gate_ExDxF)):
    hidden = jax.nn.silu(x_TxD @ experts.gate_ExDxF[e]) * (x_TxD @ experts.up_ExDxF[e])
    gates_P = jnp.where(routing.chosen_P == e, routing.gates_P, 0)
    gates_T = jnp.zeros(len(x_TxD)).at[routing.token_P].add(gates_P)
    y_TxD += gates_T[:, None] * (hidden @ experts.down_ExFxD[e])
  return y_TxD


def value_and_grads(compute, *arguments):
  """Of a loss over what is computed of tokens, gates and experts."""

  def loss(*arguments):
    y = compute(*arguments)
    return (y.astype(jnp.float32) ** 2).sum(), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)


def agree(got, want, tolerance=1e-5):
  close = functools.partial(np.testing.assert_allclose, rtol=10 * tolerance, atol=tolerance)
  jax.tree.map(close, got, want)


def by_tokens(rng) -> Routing:
  """Two experts a token; expert 3 has none."""
  chosen = np.stack([rng.permutation([0, 1, 2, 4])[:2] for _ in range(7)])
  return route(jnp.asarray(chosen), jnp.asarray(rng.uniform(size=(7, 2)), jnp.float32))


def by_experts(rng) -> Routing:
  """As an expert-choice rule would say it: two tokens an expert, token 6 has none."""
  token = np.stack([rng.permutation(6)[:2] for _ in range(5)]).ravel()
  gates = jnp.asarray(rng.uniform(size=10), jnp.float32)
  return Routing(jnp.asarray(token), jnp.repeat(jnp.arange(5), 2), gates)


@pytest.mark.parametrize("rule", [by_tokens, by_experts])
def test_sorted_experts_equal_a_loop_over_all_of_them(rule):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
  routing, experts = rule(rng), random_experts(rng)

  def given(gates_P):
    return routing._replace(gates_P=gates_P)

  arguments = (x, routing.gates_P, experts)
  agree(
    value_and_grads(lambda x, g, experts: apply_experts(x, given(g), experts), *arguments),
    value_and_grads(lambda x, g, experts: loop_over_experts(x, given(g), experts), *arguments),
  )


def test_a_token_without_experts_gets_nothing():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
  y = apply_experts(x, by_experts(rng), random_experts(rng))
  np.testing.assert_array_equal(y[6], np.zeros(4))
  assert (np.abs(y[:6]).max(1) > 0).sum() >= 4


def test_no_token_is_dropped_when_all_want_the_same_expert():
  rng = np.random.default_rng(0)
  x, experts = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32), random_experts(rng)
  routing = route(jnp.full((7, 1), 2), jnp.ones((7, 1)))
  hidden = jax.nn.silu(x @ experts.gate_ExDxF[2]) * (x @ experts.up_ExDxF[2])
  want = hidden @ experts.down_ExFxD[2]
  np.testing.assert_allclose(apply_experts(x, routing, experts), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_rows_equal_the_ragged_product_over_several_tiles(dtype):
  """Loads of none, one, a whole tile of 16 and more; rows behind them belong to nobody."""
  load = np.array([0, 37, 1, 16, 0], np.int32)
  rng, live = np.random.default_rng(0), np.arange(60)[:, None] < load.sum()
  x = np.where(live, rng.normal(size=(60, 4)), np.nan).astype(dtype)
  kernel = rng.normal(size=(5, 4, 3)).astype(dtype)

  def compute(product):
    def loss(x, kernel):
      y = jnp.where(live, product(x, kernel, jnp.asarray(load)).astype(jnp.float32), 0)
      return (y**2).sum(), y

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

  (_, y), (dx, dkernel) = compute(grouped_product)(x, kernel)
  (_, want_y), (want_dx, want_dkernel) = compute(jax.lax.ragged_dot)(np.nan_to_num(x), kernel)
  assert (dx.dtype, dkernel.dtype) == (x.dtype, kernel.dtype)
  tolerance = 1e-5 if dtype == "float32" else 0.02
  for got, want in (
    (y, want_y),
    (dx[: load.sum()], want_dx[: load.sum()]),
    (dkernel, want_dkernel),
  ):
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def test_on_a_cpu_no_expert_computes_the_rows_of_all():
  rng = np.random.default_rng(0)
  x = jnp.zeros((7, 4))
  program = jax.make_jaxpr(apply_experts)(x, by_tokens(rng), random_experts(rng))
  assert "ragged_dot" not in str(program) and "dot_general" in str(program)


def drawn_slots(rng, used: int, size: int) -> Slots:
  """Five experts, `used` different tokens of seven each, then empty slots."""
  token = np.stack([rng.permutation(7)[:used] for _ in range(5)])
  gates = rng.uniform(size=(5, used))
  empty = ((0, 0), (0, size - used))
  return Slots(
    jnp.asarray(np.pad(token, empty)), jnp.asarray(np.pad(gates, empty), jnp.float32), used
  )


def slots_in_a_loop(x, gates_ExC, experts, slots):
  size = gates_ExC.shape[1]
  expert_P = jnp.repeat(jnp.arange(5), size)
  return loop_over_experts(
    x, Routing(slots.token_ExC.ravel(), expert_P, gates_ExC.ravel()), experts
  )


@pytest.mark.parametrize("sizes", [(6,), (2, 3, 4, 6), (4, 6)])
@pytest.mark.parametrize("used", [1, 3, 4, 6])
def test_packed_slots_equal_a_loop_whatever_the_size(sizes, used):
  """Forward and backward: one size is the masked computation at the most."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
  slots, experts = drawn_slots(rng, used, 6), random_experts(rng)
  arguments = (x, slots.gates_ExC, experts)

  def packed(x, gates_ExC, experts):
    return apply_slots(x, slots._replace(gates_ExC=gates_ExC), experts, sizes)

  def looped(x, gates_ExC, experts):
    return slots_in_a_loop(x, gates_ExC, experts, slots)

  (got, got_y), (dx, dgates, dexperts) = value_and_grads(packed, *arguments)
  (want, want_y), (want_dx, want_dgates, want_dexperts) = value_and_grads(looped, *arguments)
  # Empty slots that are not computed have no gradient; their gates are constants.
  agree((got, got_y, dx, dexperts), (want, want_y, want_dx, want_dexperts))
  agree(dgates[:, :used], want_dgates[:, :used])


def test_what_lies_behind_the_smallest_size_is_not_computed():
  """Empty slots that point to a row of NaN would spoil the sums."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32).at[6].set(jnp.nan)
  token = jnp.asarray(np.stack([rng.permutation(6)[:3] for _ in range(5)]))
  token = jnp.concatenate([token, token[:, :1], jnp.full((5, 4), 6)], axis=1)
  gates = jnp.where(jnp.arange(8)[None] < 3, 1.0, 0.0) * jnp.ones((5, 1))
  experts, slots = random_experts(rng), Slots(token, gates, jnp.int32(3))

  def gradients(sizes):
    def total(x, experts):
      return apply_slots(x, slots, experts, sizes).sum()

    return jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(x, experts))

  assert np.isfinite(apply_slots(x, slots, experts, (2, 4, 8))[:6]).all()
  assert all(np.isfinite(leaf).all() for leaf in gradients((2, 4, 8)))
  assert not all(np.isfinite(leaf).all() for leaf in gradients((8,)))


def test_bfloat16_tokens_stay_so_and_their_gradients_are_near():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
  slots, experts = drawn_slots(rng, 4, 6), random_experts(rng)

  def packed(x, gates_ExC, experts):
    experts = jax.tree.map(lambda kernel: kernel.astype(x.dtype), experts)
    return apply_slots(x, slots._replace(gates_ExC=gates_ExC), experts, (2, 4, 6))

  (_, y), (dx, dgates, dexperts) = value_and_grads(
    packed, x.astype(jnp.bfloat16), slots.gates_ExC, experts
  )
  assert (y.dtype, dx.dtype, dgates.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  (_, want_y), (want_dx, _, want_dexperts) = value_and_grads(packed, x, slots.gates_ExC, experts)
  for got, want in ((y, want_y), (dx, want_dx), (dexperts.down_ExFxD, want_dexperts.down_ExFxD)):
    error = np.abs(np.asarray(got, np.float32) - want).max() / np.abs(want).max()
    assert error < 0.03
