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
  if over.expert is None:
    pairs = _sorted(routing, len(experts.gate_ExDxF))
    y_PxD = _products(activation, x_TxD[pairs.token_P], experts, pairs.load_E)
    y_PxD = y_PxD.astype(jnp.float32) * pairs.gates_P[:, None]
    sums_TxD = jnp.zeros(x_TxD.shape, jnp.float32).at[pairs.token_P].add(y_PxD)
    return over.summed(sums_TxD).astype(x_TxD.dtype)
  first, count = over.index() * len(x_TxD), len(experts.gate_ExDxF)
  routing = jax.tree.map(over.gathered, routing._replace(token_P=routing.token_P + first))
  chosen_P = routing.chosen_P - over.index() * count
  # Other devices' experts come last, in no group.
  chosen_P = jnp.where((chosen_P >= 0) & (chosen_P < count), chosen_P, count)
  pairs = _sorted(routing._replace(chosen_P=chosen_P), count)
  share = len(chosen_P) // over.devices()
  return _by_shares(activation, share, over, over.gathered(x_TxD), pairs, experts)


class _Pairs(NamedTuple):
  """Pairs in the order of their experts, then those of no expert at hand."""

  token_P: Array
  gates_P: Array
  load_E: Array  # int32, pairs of each expert


def _sorted(routing: Routing, experts: int) -> _Pairs:
  order_P = jnp.argsort(routing.chosen_P, stable=True)
  load_E = jnp.bincount(routing.chosen_P, length=experts).astype(jnp.int32)
  return _Pairs(routing.token_P[order_P], routing.gates_P[order_P], load_E)


def _products(
  activation: Callable[[Array], Array], x_PxD: Array, experts: Experts, load_E: Array
) -> Array:
  """Rows in the order of their experts through these."""
  ragged = grouped_product if dispatch.backend() == "cpu" else jax.lax.ragged_dot

  def product(x_PxI: Array, kernel_ExIxO: Array) -> Array:
    return checkpoint_name(ragged(x_PxI, kernel_ExIxO, load_E), EXPERT_PRODUCT)

  hidden_PxF = activation(product(x_PxD, experts.gate_ExDxF)) * product(x_PxD, experts.up_ExDxF)
  return product(hidden_PxF, experts.down_ExFxD)


# All pairs may be one device's, but arrays of so many rows would not fit beside a large model: an
# even share of them is computed at a time. A gradient of its own, as a loop of any number of turns
# has none; it computes the products again. The way back to the tokens' devices is a part of it:
# sums travel in float32, but their gradients in the tokens' type, as they come.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _by_shares(
  activation: Callable[[Array], Array],
  share: int,
  over: Exchange,
  x_TxD: Array,
  pairs: _Pairs,
  experts: Experts,
) -> Array:
  """Sums over the pairs of all experts, for the tokens of this device.

  Args:
    share: pairs that are computed at a time, in as many turns as there are pairs.
    x_TxD, pairs: tokens of all devices that exchange, and pairs with `experts`.
  """

  def turn(i: Array, sums_TxD: Array) -> Array:
    token_C, gates_C, load_E = _share_of(pairs, i, share)
    y_CxD = _weighted(activation, x_TxD[token_C], gates_C, experts, load_E)
    return sums_TxD.at[token_C].add(y_CxD)

  sums_TxD = jnp.zeros(x_TxD.shape, jnp.float32)
  sums_TxD = jax.lax.fori_loop(0, _turns(pairs, share), turn, sums_TxD)
  return over.summed(over.scattered(sums_TxD)).astype(x_TxD.dtype)


def _by_shares_forward(activation, share, over, x_TxD, pairs, experts) -> tuple[Array, tuple]:
  return _by_shares(activation, share, over, x_TxD, pairs, experts), (x_TxD, pairs, experts)


def _by_shares_backward(
  activation: Callable[[Array], Array], share: int, over: Exchange, kept: tuple, dy_TxD: Array
) -> tuple[Array, _Pairs, Experts]:
  x_TxD, pairs, experts = kept
  weighted, dy_TxD = functools.partial(_weighted, activation), over.gathered(dy_TxD)

  def turn(i: Array, sums: tuple[Array, Array, Experts]) -> tuple[Array, Array, Experts]:
    dx_TxD, dgates_P, dexperts = sums
    token_C, gates_C, load_E = _share_of(pairs, i, share)
    _, gradient = jax.vjp(weighted, x_TxD[token_C], gates_C, experts, load_E)
    dy_CxD = over.sum_of_equals(dy_TxD[token_C].astype(jnp.float32))
    dx_CxD, dgates_C, own, _ = gradient(dy_CxD)
    dx_TxD = dx_TxD.at[token_C].add(dx_CxD.astype(jnp.float32))
    dgates_P = jax.lax.dynamic_update_slice_in_dim(dgates_P, dgates_C, i * share, 0)
    return dx_TxD, dgates_P, jax.tree.map(jnp.add, dexperts, own)

  zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, jnp.float32))
  sums = zeros((x_TxD, pairs.gates_P, experts))
  dx_TxD, dgates_P, dexperts = jax.lax.fori_loop(0, _turns(pairs, share), turn, sums)
  dexperts = jax.tree.map(lambda dx, x: dx.astype(x.dtype), dexperts, experts)
  return dx_TxD.astype(x_TxD.dtype), _Pairs(None, dgates_P, None), dexperts


_by_shares.defvjp(_by_shares_forward, _by_shares_backward)


def _turns(pairs: _Pairs, share: int) -> Array:
  return -(-pairs.load_E.sum() // share)


def _share_of(pairs: _Pairs, i: Array, share: int) -> _Pairs:
  """The i-th share of the pairs."""
  first, ends_E = i * share, jnp.cumsum(pairs.load_E)
  inside_E, before_E = (jnp.clip(x_E - first, 0, share) for x_E in (ends_E, ends_E - pairs.load_E))
  token_C, gates_C = (
    jax.lax.dynamic_slice_in_dim(x_P, first, share) for x_P in (pairs.token_P, pairs.gates_P)
  )
  return _Pairs(token_C, gates_C, inside_E - before_E)


def _weighted(
  activation: Callable[[Array], Array],
  x_CxD: Array,
  gates_C: Array,
  experts: Experts,
  load_E: Array,
) -> Array:
  """float32 gate * expert(x). Rows in no group are nobody's, whatever a product makes of them."""
  own_Cx1 = (jnp.arange(len(x_CxD)) < load_E.sum())[:, None]
  y_CxD = _products(activation, jnp.where(own_Cx1, x_CxD, 0), experts, load_E)
  return jnp.where(own_Cx1, y_CxD, 0).astype(jnp.float32) * gates_C[:, None]


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
