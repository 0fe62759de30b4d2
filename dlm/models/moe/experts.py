"""The chosen compute: pairs in any number, or as many slots for every expert."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from dlm.models.moe.exchange import ALONE, Exchange
from dlm.models.moe.grouped import grouped_product
from dlm.types import Array
from kernels_pallas import dispatch

EXPERT_PRODUCT = "expert_product"  # what a rematerialising backward may keep


class Experts(NamedTuple):
  """Kernels of E SwiGLU networks of width F, of the tokens' type; on a mesh, this device's part."""

  gate_ExDxF: Array
  up_ExDxF: Array
  down_ExFxD: Array


# The names that `dlm.parallel` knows their axes by.
INWARD, OUTWARD = PartitionSpec("expert", "embed", "mlp"), PartitionSpec("expert", "mlp", "embed")
NAMES = Experts(INWARD, INWARD, OUTWARD)


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


def apply_experts(
  x_TxD: Array,
  routing: Routing,
  experts: Experts,
  over: Exchange = ALONE,
  activation: Callable[[Array], Array] = jax.nn.silu,
) -> Array:
  """Sum over a token's pairs of gate * expert(x), added up in float32; 0 for a token without pairs.

  Every pair is computed, however uneven the load: pairs in the order of their experts are equal to
  one matmul per expert over its own rows. As no device knows how many pairs another has for it,
  tokens are gathered over the devices that exchange: each computes all pairs of its experts.
  """
  first = over.index() * len(x_TxD)
  routing = jax.tree.map(over.gathered, routing._replace(token_P=routing.token_P + first))
  sums_TxD = _sorted_pairs(over.gathered(x_TxD), routing, experts, over, activation)
  return over.summed(over.scattered(sums_TxD)).astype(x_TxD.dtype)


def _sorted_pairs(
  x_TxD: Array,
  routing: Routing,
  experts: Experts,
  over: Exchange,
  activation: Callable[[Array], Array],
) -> Array:
  """float32 sums over the pairs of `experts`."""
  count = len(experts.gate_ExDxF)
  chosen_P = routing.chosen_P - over.index() * count
  if over.expert is not None:  # other devices' experts come last, in no group
    chosen_P = jnp.where((chosen_P >= 0) & (chosen_P < count), chosen_P, count)
  order_P = jnp.argsort(chosen_P, stable=True)
  token_P, gates_P = routing.token_P[order_P], routing.gates_P[order_P]
  load_E = jnp.bincount(chosen_P, length=count).astype(jnp.int32)

  def own(x_PxI: Array) -> Array:
    """Rows in no group are nobody's: forward and backward, whatever the product makes of them."""
    if over.expert is None:
      return x_PxI
    return jnp.where((jnp.arange(len(x_PxI)) < load_E.sum())[:, None], x_PxI, 0)

  ragged = grouped_product if dispatch.backend() == "cpu" else jax.lax.ragged_dot

  def product(x_PxI: Array, kernel_ExIxO: Array) -> Array:
    return checkpoint_name(ragged(x_PxI, kernel_ExIxO, load_E), EXPERT_PRODUCT)

  x_PxD = own(x_TxD[token_P])
  hidden_PxF = activation(product(x_PxD, experts.gate_ExDxF)) * product(x_PxD, experts.up_ExDxF)
  y_PxD = own(product(hidden_PxF, experts.down_ExFxD)).astype(jnp.float32) * gates_P[:, None]
  return jnp.zeros(x_TxD.shape, jnp.float32).at[token_P].add(y_PxD)


def apply_slots(
  x_TxD: Array, slots: Slots, experts: Experts, sizes: tuple[int, ...], over: Exchange = ALONE
) -> Array:
  """`apply_experts` of slots: plain batched matmuls, as every expert has equally many.

  Work follows what is used: of `sizes` the smallest that holds it is computed, forward and
  backward. Each is compiled, so no slot is ever cut off, and one size alone needs no switch.

  Args:
    sizes: ascending; the last is C.
  """
  slots = slots._replace(used=over.largest(slots.used))
  return over.summed(_sized(sizes, over, x_TxD, slots, experts)).astype(x_TxD.dtype)


def _at_size(sizes: tuple[int, ...], used: Array, run: Callable, *operands: Any) -> Any:
  """`run(size, *operands)` with the smallest size that holds `used`."""
  runs = [functools.partial(run, size) for size in sizes]
  if len(runs) == 1:
    return runs[0](*operands)
  # `used` may not exceed the last size: clamped by the switch.
  return jax.lax.switch(jnp.searchsorted(jnp.array(sizes), used), runs, *operands)


# A gradient of its own: that of a switch would keep the residuals of all its branches, those not
# taken as zeros.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sized(
  sizes: tuple[int, ...], over: Exchange, x_TxD: Array, slots: Slots, experts: Experts
) -> Array:
  return _forward(sizes, over, x_TxD, slots, experts)[0]


def _forward(
  sizes: tuple[int, ...], over: Exchange, x_TxD: Array, slots: Slots, experts: Experts
) -> tuple[Array, tuple]:
  compute = functools.partial(_compute, over, sizes[-1])
  y_TxD, *products = _at_size(sizes, slots.used, compute, x_TxD, slots, experts)
  products = [checkpoint_name(each, EXPERT_PRODUCT) for each in products]
  return y_TxD, (x_TxD, slots, experts, *products)


def _compute(
  over: Exchange, room: int, size: int, x_TxD: Array, slots: Slots, experts: Experts
) -> tuple[Array, Array, Array]:
  """Over the first `size` slots: the weighted sums, float32, and two products for the gradient."""
  token_ExC, gates_ExC = slots.token_ExC[:, :size], slots.gates_ExC[:, :size]
  x_ExCxD = over.to_experts(x_TxD[token_ExC])
  gate_ExCxF, up_ExCxF = x_ExCxD @ experts.gate_ExDxF, x_ExCxD @ experts.up_ExDxF
  y_ExCxD = over.to_tokens(_activate(gate_ExCxF, up_ExCxF) @ experts.down_ExFxD)
  sums_TxD = jnp.zeros(x_TxD.shape, jnp.float32)
  sums_TxD = sums_TxD.at[token_ExC].add(y_ExCxD.astype(jnp.float32) * gates_ExC[:, :, None])
  pad = ((0, 0), (0, over.devices() * (room - size)), (0, 0))
  return sums_TxD, jnp.pad(gate_ExCxF, pad), jnp.pad(up_ExCxF, pad)


def _activate(gate: Array, up: Array) -> Array:
  return jax.nn.silu(gate) * up


def _backward(sizes: tuple[int, ...], over: Exchange, kept: tuple, dy_TxD: Array) -> tuple:
  slots, gradients = kept[1], functools.partial(_gradients, over)
  dx_TxD, dgates_ExC, dexperts = _at_size(sizes, slots.used, gradients, *kept, dy_TxD)
  return dx_TxD, Slots(None, dgates_ExC, None), dexperts


def _gradients(
  over: Exchange,
  size: int,
  x_TxD: Array,
  slots: Slots,
  experts: Experts,
  gate: Array,
  up: Array,
  dy_TxD: Array,
) -> tuple[Array, Array, Experts]:
  token_ExC, dtype = slots.token_ExC[:, :size], x_TxD.dtype
  x_ExCxD = over.to_experts(x_TxD[token_ExC])
  dy_ExCxD = over.to_experts(dy_TxD.astype(dtype)[token_ExC])
  gates_ExCx1 = over.to_experts(slots.gates_ExC[:, :size, None])
  computed = over.devices() * size
  hidden_ExCxF, activation = jax.vjp(_activate, gate[:, :computed], up[:, :computed])
  # <dy, hidden @ down> = <dy @ down.T, hidden>: the gates' gradient without the last product.
  back_ExCxF = (dy_ExCxD @ experts.down_ExFxD.mT).astype(jnp.float32)
  dgates_ExC = over.to_tokens((back_ExCxF * hidden_ExCxF.astype(jnp.float32)).sum(-1))
  ddown_ExFxD = (hidden_ExCxF * gates_ExCx1.astype(dtype)).mT @ dy_ExCxD
  dgate_ExCxF, dup_ExCxF = activation((back_ExCxF * gates_ExCx1).astype(dtype))
  dx_ExCxD = dgate_ExCxF @ experts.gate_ExDxF.mT + dup_ExCxF @ experts.up_ExDxF.mT
  dx_ExCxD = over.to_tokens(dx_ExCxD).astype(jnp.float32)
  dx_TxD = jnp.zeros(x_TxD.shape, jnp.float32).at[token_ExC].add(dx_ExCxD)
  dexperts = Experts(x_ExCxD.mT @ dgate_ExCxF, x_ExCxD.mT @ dup_ExCxF, ddown_ExFxD)
  room = slots.token_ExC.shape[1]
  return dx_TxD.astype(dtype), jnp.pad(dgates_ExC, ((0, 0), (0, room - size))), dexperts


_sized.defvjp(_forward, _backward)
