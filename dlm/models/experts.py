"""The chosen compute: pairs in any number, or as many slots for every expert."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dlm.types import Array

EXPERT_PRODUCT = "expert_product"  # what a rematerialising backward may keep


class Experts(NamedTuple):
  """Kernels of E SwiGLU networks of width F."""

  gate_ExDxF: Array
  up_ExDxF: Array
  down_ExFxD: Array


class Routing(NamedTuple):
  """P pairs of a token and an expert, in any order; a token or an expert may have any number."""

  token_P: Array  # int32, row of the tokens
  chosen_P: Array  # int32, the expert
  gates_P: Array  # float32, the weight of its answer


class Slots(NamedTuple):
  """C slots for every expert, empty ones among them and behind `used`."""

  token_ExC: Array  # int32, row of the tokens; any where empty
  gates_ExC: Array  # float32, the weight of the expert's answer; 0 where empty
  used: Array  # int32: slots from here on are empty


def apply_experts(x_TxD: Array, routing: Routing, experts: Experts) -> Array:
  """Sum over a token's pairs of gate * expert(x), added up in float32; 0 for a token without pairs.

  Every pair is computed, however uneven the load: pairs in the order of their experts are equal to
  one matmul per expert over its own rows.
  """
  order_P = jnp.argsort(routing.chosen_P, stable=True)
  token_P, gates_P = routing.token_P[order_P], routing.gates_P[order_P]
  load_E = jnp.bincount(routing.chosen_P, length=len(experts.gate_ExDxF)).astype(jnp.int32)

  def product(x_PxI: Array, kernel_ExIxO: Array) -> Array:
    y_PxO = jax.lax.ragged_dot(x_PxI, kernel_ExIxO.astype(x_PxI.dtype), load_E)
    return checkpoint_name(y_PxO, EXPERT_PRODUCT)

  x_PxD = x_TxD[token_P]
  hidden_PxF = jax.nn.silu(product(x_PxD, experts.gate_ExDxF)) * product(x_PxD, experts.up_ExDxF)
  y_PxD = product(hidden_PxF, experts.down_ExFxD).astype(jnp.float32) * gates_P[:, None]
  return jnp.zeros(x_TxD.shape, jnp.float32).at[token_P].add(y_PxD).astype(x_TxD.dtype)


def apply_slots(x_TxD: Array, slots: Slots, experts: Experts, sizes: tuple[int, ...]) -> Array:
  """`apply_experts` of slots: plain batched matmuls, as every expert has equally many.

  Work follows what is used: of `sizes` the smallest that holds it is computed, forward and
  backward. Each is compiled, so no slot is ever cut off, and one size alone needs no switch.

  Args:
    sizes: ascending; the last is C.
  """
  experts = Experts(*(kernel.astype(x_TxD.dtype) for kernel in experts))
  return _sized(sizes, x_TxD, slots, experts).astype(x_TxD.dtype)


def _at_size(sizes: tuple[int, ...], used: Array, run: Callable, *operands: Any) -> Any:
  """`run(size, *operands)` with the smallest size that holds `used`."""
  runs = [functools.partial(run, size) for size in sizes]
  if len(runs) == 1:
    return runs[0](*operands)
  # `used` may not exceed the last size: clamped by the switch.
  return jax.lax.switch(jnp.searchsorted(jnp.array(sizes), used), runs, *operands)


# A gradient of its own: that of a switch would keep the residuals of all its branches, those not
# taken as zeros.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sized(sizes: tuple[int, ...], x_TxD: Array, slots: Slots, experts: Experts) -> Array:
  return _forward(sizes, x_TxD, slots, experts)[0]


def _forward(
  sizes: tuple[int, ...], x_TxD: Array, slots: Slots, experts: Experts
) -> tuple[Array, tuple]:
  y_TxD, *products = _at_size(
    sizes, slots.used, functools.partial(_compute, sizes[-1]), x_TxD, slots, experts
  )
  products = [checkpoint_name(each, EXPERT_PRODUCT) for each in products]
  return y_TxD, (x_TxD, slots, experts, *products)


def _compute(
  room: int, size: int, x_TxD: Array, slots: Slots, experts: Experts
) -> tuple[Array, Array, Array]:
  """Over the first `size` slots: the weighted sums, float32, and two products for the gradient."""
  token_ExC, gates_ExC = slots.token_ExC[:, :size], slots.gates_ExC[:, :size]
  x_ExCxD = x_TxD[token_ExC]
  gate_ExCxF, up_ExCxF = x_ExCxD @ experts.gate_ExDxF, x_ExCxD @ experts.up_ExDxF
  y_ExCxD = (_activate(gate_ExCxF, up_ExCxF) @ experts.down_ExFxD).astype(jnp.float32)
  sums_TxD = jnp.zeros(x_TxD.shape, jnp.float32)
  sums_TxD = sums_TxD.at[token_ExC].add(y_ExCxD * gates_ExC[:, :, None])
  pad = ((0, 0), (0, room - size), (0, 0))
  return sums_TxD, jnp.pad(gate_ExCxF, pad), jnp.pad(up_ExCxF, pad)


def _activate(gate: Array, up: Array) -> Array:
  return jax.nn.silu(gate) * up


def _backward(sizes: tuple[int, ...], kept: tuple, dy_TxD: Array) -> tuple:
  slots = kept[1]
  dx_TxD, dgates_ExC, dexperts = _at_size(sizes, slots.used, _gradients, *kept, dy_TxD)
  return dx_TxD, Slots(None, dgates_ExC, None), dexperts


def _gradients(
  size: int, x_TxD: Array, slots: Slots, experts: Experts, gate: Array, up: Array, dy_TxD: Array
) -> tuple[Array, Array, Experts]:
  token_ExC, gates_ExCx1 = slots.token_ExC[:, :size], slots.gates_ExC[:, :size, None]
  dtype = x_TxD.dtype
  x_ExCxD, dy_ExCxD = x_TxD[token_ExC], dy_TxD.astype(dtype)[token_ExC]
  hidden_ExCxF, activation = jax.vjp(_activate, gate[:, :size], up[:, :size])
  # <dy, hidden @ down> = <dy @ down.T, hidden>: the gates' gradient without the last product.
  back_ExCxF = (dy_ExCxD @ experts.down_ExFxD.mT).astype(jnp.float32)
  dgates_ExC = (back_ExCxF * hidden_ExCxF.astype(jnp.float32)).sum(-1)
  ddown_ExFxD = (hidden_ExCxF * gates_ExCx1.astype(dtype)).mT @ dy_ExCxD
  dgate_ExCxF, dup_ExCxF = activation((back_ExCxF * gates_ExCx1).astype(dtype))
  dx_ExCxD = dgate_ExCxF @ experts.gate_ExDxF.mT + dup_ExCxF @ experts.up_ExDxF.mT
  dx_TxD = jnp.zeros(x_TxD.shape, jnp.float32).at[token_ExC].add(dx_ExCxD.astype(jnp.float32))
  dexperts = Experts(x_ExCxD.mT @ dgate_ExCxF, x_ExCxD.mT @ dup_ExCxF, ddown_ExFxD)
  room = slots.token_ExC.shape[1]
  return dx_TxD.astype(dtype), jnp.pad(dgates_ExC, ((0, 0), (0, room - size))), dexperts


_sized.defvjp(_forward, _backward)
