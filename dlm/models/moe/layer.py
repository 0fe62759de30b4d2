"""Experts in place of an MLP, in two steps: a rule chooses, then the chosen compute."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dlm.models.config import ModelConfig
from dlm.models.layers import SwiGLU, gelu, normalised
from dlm.models.moe import capacity, exchange, expert_choice, pools, router_losses, token_choice
from dlm.models.moe.config import MoeConfig
from dlm.models.moe.exchange import Exchange
from dlm.models.moe.experts import INWARD, NAMES, OUTWARD, Experts, apply_experts, apply_slots
from dlm.types import Array
from kernels_pallas.shards import folded, unfolded


class Router(nn.Module):
  """float32 logits whatever the activations are: a rounded score is another choice of experts."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_TxD: Array) -> tuple[Array, Array | None, Array | None]:
    """Logits [T, E], the bias [E] and what weights are multiplied by [E], None where there is none.

    DiffusionGemma's normalises and scales what it reads, and has such multipliers.
    """
    moe, width, gain_E = self.config.moe, self.config.width, None
    if self.config.gemma is not None:
      ones = nn.initializers.ones
      scale_D = self.param("scale", nn.with_logical_partitioning(ones, ("embed",)), (width,))
      gain_E = self.param("gain", nn.with_logical_partitioning(ones, (None,)), (moe.experts,))
      x_TxD = normalised(x_TxD.astype(jnp.float32), self.config.norm_eps)
      x_TxD *= scale_D.astype(jnp.float32)[None] * width**-0.5
    # Not split over "expert": small, and every device needs the scores of all experts.
    init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("embed", None))
    kernel_DxE = self.param("kernel", init, (width, moe.experts)).astype(jnp.float32)
    # Accelerators would round the operands of a float32 matmul.
    logits_TxE = jnp.matmul(
      x_TxD.astype(jnp.float32), kernel_DxE, precision=jax.lax.Precision.HIGHEST
    )
    if not moe.bias:
      return logits_TxE, None, gain_E
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
    return logits_TxE, self.param("bias", zeros, (moe.experts,)), gain_E


class Kernel(nn.Module):
  """One matrix per expert, normal with variance `gain**2 / fan_in`."""

  shape: tuple[int, int, int]  # experts, in, out
  names: PartitionSpec
  gain: float = 1.0

  @nn.compact
  def __call__(self, dtype: jnp.dtype) -> Array:
    if self.has_variable("quantised", "kernel"):
      codes = self.get_variable("quantised", "kernel")
      return jax.vmap(lambda own: own.wide(dtype))(codes)
    init = nn.with_logical_partitioning(
      nn.initializers.normal(self.gain * self.shape[1] ** -0.5), tuple(self.names)
    )
    return self.param("kernel", init, self.shape).astype(dtype)


class Moe(nn.Module):
  """Routed experts plus, if there is one, the expert that all tokens share.

  With choice "expert" the slots of a pool compete, and with `admitted` they choose among the same
  experts. Pools are the whole row, or blocks of `pool` slots cut from the window's start: each copy
  of a block in [noisy; clean] is a pool of its own, and a cached window of whole blocks has the
  pools that the whole canvas has. With the row as its pool a token's experts depend on slots that a
  cached window leaves out. A pool's noise level is the largest of its live slots; clean text says
  0.
  """

  config: ModelConfig
  out_gain: float

  @nn.compact
  def __call__(
    self,
    x_BxWxD: Array,
    live_BxW: Array,
    level_BxW: Array | None,
    asked_BxWxD: Array | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the output and the router's facts, which `ModelOutput.aux` has for every layer.

    Facts of a layer are named as those of all: axis Y comes with the stack.
      router_logits_YxBxWxE; of choice "token" experts_YxBxWxK and weights_YxBxWxK, before any is
      dropped; of choice "expert" choosers_YxBxW, how many experts chose the token;
      load_YxE, tokens of each expert, before any is dropped;
      per_token_Y, experts of a token on average; unchosen_Y, share of tokens without any;
      dropped_Y, share of pairs of token and expert that capacity drops;
      z_loss_Y, balance_loss_Y, and router_loss_Y, their sum with the coefficients.
    Where a mesh splits rows, W is in the order of `kernels_pallas.shards.dealt`.
    Counts and shares are of live tokens; padding is never chosen and takes nobody's place.

    Args:
      live_BxW: bool, real tokens.
      level_BxW: noise level; may be None where `MoeConfig.reads_noise` is False.
      asked_BxWxD: what the router reads; None: what the experts do.
    """
    width, moe = self.config.width, self.config.moe
    x_TxD, live_T = folded(x_BxWxD), folded(live_BxW)
    asked_TxD = x_TxD if asked_BxWxD is None else folded(asked_BxWxD)
    logits_TxE, bias_E, gain_E = Router(self.config, name="router")(asked_TxD)
    inward, outward = (moe.experts, width, moe.mlp), (moe.experts, moe.mlp, width)
    # Rounded first: no more is gathered over "fsdp" than is used.
    experts = Experts(
      Kernel(inward, INWARD, name="gate")(x_BxWxD.dtype),
      Kernel(inward, INWARD, name="up")(x_BxWxD.dtype),
      Kernel(outward, OUTWARD, gain=self.out_gain, name="down")(x_BxWxD.dtype),
    )
    # Parameters are made with one row, which cannot be split.
    over = exchange.ALONE if self.is_initializing() else exchange.here()
    if moe.choice == "expert":
      y_BxWxD, facts = _experts_choose(moe, over, experts, x_BxWxD, logits_TxE, live_BxW, level_BxW)
    else:
      activation = jax.nn.silu if self.config.gemma is None else gelu
      choose = functools.partial(_best_experts, moe, over, activation)
      params = experts, bias_E, gain_E
      y_BxWxD, facts = _tokens_choose(moe, over, choose, params, x_BxWxD, logits_TxE, live_BxW)
    if moe.shared:
      y_BxWxD += SwiGLU(width, moe.shared, self.out_gain, name="shared")(x_BxWxD)

    facts = {
      name: unfolded(fact, live_BxW.shape) if "BxW" in name else fact
      for name, fact in {"router_logits_YxBxWxE": logits_TxE, **facts}.items()
    }
    facts["z_loss_Y"] = router_losses.z_loss(logits_TxE, live_T)
    facts["router_loss_Y"] = (
      moe.z_loss * facts["z_loss_Y"] + moe.balance_loss * facts["balance_loss_Y"]
    )
    return y_BxWxD, facts


def _tokens_choose(
  moe: MoeConfig,
  over: Exchange,
  choose: Callable,
  params: tuple[Experts, Array | None, Array | None],
  x_BxWxD: Array,
  logits_TxE: Array,
  live_BxW: Array,
) -> tuple[Array, dict[str, Array]]:
  """`choose`: `_best_experts` over a device's rows; `params`: the experts, biases and gains."""
  names = NAMES, PartitionSpec(), PartitionSpec()
  rows = x_BxWxD, unfolded(logits_TxE, live_BxW.shape), live_BxW
  y_BxWxD, chosen_BxWxK, weight_BxWxK, kept_BxW = over.run(choose, names, params, *rows)
  chosen_TxK, live_T = folded(chosen_BxWxK), folded(live_BxW)
  live_TxK = jnp.broadcast_to(live_T[:, None], chosen_TxK.shape)
  load_E = jnp.zeros(moe.experts, jnp.int32).at[chosen_TxK].add(live_TxK.astype(jnp.int32))
  return y_BxWxD, {
    "experts_YxBxWxK": chosen_TxK,
    "weights_YxBxWxK": folded(weight_BxWxK),
    **_shares(load_E, folded(kept_BxW), live_TxK.sum(), live_T),
    "balance_loss_Y": router_losses.token_balance(logits_TxE, load_E, moe.per_token, live_T),
  }


def _best_experts(
  moe: MoeConfig,
  over: Exchange,
  activation: Callable[[Array], Array],
  params: tuple[Experts, Array | None, Array | None],
  x_BxWxD: Array,
  logits_BxWxE: Array,
  live_BxW: Array,
) -> tuple[Array, Array, Array, Array]:
  """Also each token's experts, their weights, and how many of them keep it.

  Capacity is counted over this device's rows.
  """
  experts, bias_E, gain_E = params
  x_TxD, logits_TxE, live_T = map(folded, (x_BxWxD, logits_BxWxE, live_BxW))
  chosen_TxK, weight_TxK = token_choice.token_choice(moe, logits_TxE, bias_E, live_BxW)
  if gain_E is not None:
    weight_TxK *= gain_E[chosen_TxK].astype(weight_TxK.dtype)
  if moe.capacity_factor:
    places = token_choice.capacity(chosen_TxK.size, moe.experts, moe.capacity_factor)
    places = min(places, len(x_TxD))
    rank_TxK = token_choice.drop_rank(moe, logits_TxE, bias_E, chosen_TxK, weight_TxK)
    slots, kept_TxK = token_choice.keep(
      chosen_TxK, weight_TxK, rank_TxK, live_T, moe.experts, places
    )
    y_TxD = apply_slots(x_TxD, slots, experts, (places,), over)
    kept_T = kept_TxK.sum(1)
  else:
    routing = token_choice.route(chosen_TxK, weight_TxK)
    y_TxD = apply_experts(x_TxD, routing, experts, over, activation)
    kept_T = moe.per_token * live_T
  return tuple(unfolded(x, live_BxW.shape) for x in (y_TxD, chosen_TxK, weight_TxK, kept_T))


def _experts_choose(
  moe: MoeConfig,
  over: Exchange,
  experts: Experts,
  x_BxWxD: Array,
  logits_TxE: Array,
  live_BxW: Array,
  level_BxW: Array | None,
) -> tuple[Array, dict[str, Array]]:
  batch, window = live_BxW.shape
  size = moe.pool or window
  live_PxS = pools.cut(live_BxW, size)
  level_P = jnp.zeros(len(live_PxS))
  if moe.reads_noise:
    level_P = jnp.where(live_PxS, pools.cut(level_BxW, size), 0).max(1)
  per_token_P = capacity.per_token(moe, level_P)
  count_P = capacity.tokens_per_expert(per_token_P, live_PxS.sum(1), moe.experts)
  rows = x_BxWxD, unfolded(logits_TxE, live_BxW.shape), live_BxW, count_P.reshape(batch, -1)
  y_BxWxD, choosers_BxW, load_BxE = over.run(
    functools.partial(_best_tokens, moe, over), NAMES, experts, *rows
  )

  choosers_T, live_T = choosers_BxW.reshape(-1), live_BxW.reshape(-1)
  is_pool_P = live_PxS.any(1)
  mean_per_token = per_token_P.sum(where=is_pool_P) // jnp.maximum(is_pool_P.sum(), 1)
  return y_BxWxD, {
    "choosers_YxBxW": choosers_T,
    **_shares(load_BxE.sum(0), choosers_T, choosers_T.sum(), live_T),
    "balance_loss_Y": router_losses.expert_balance(
      logits_TxE, choosers_T, jnp.maximum(mean_per_token, 1), live_T
    ),
  }


def _best_tokens(
  moe: MoeConfig,
  over: Exchange,
  experts: Experts,
  x_BxWxD: Array,
  logits_BxWxE: Array,
  live_BxW: Array,
  count_BxN: Array,
) -> tuple[Array, Array, Array]:
  """Also each token's choosers and the tokens of a row that each expert takes.

  Args:
    count_BxN: tokens that an expert takes of each of a row's pools.
  """
  batch, window = live_BxW.shape
  size, count_P = moe.pool or window, count_BxN.reshape(-1)
  sizes = capacity.buffer_sizes(moe, len(count_P), size)
  places = sizes[-1] // len(count_P)
  choice = expert_choice.choose(
    moe, pools.cut(logits_BxWxE, size), pools.cut(live_BxW, size), count_P, places
  )
  block_N = jnp.arange(count_BxN.shape[1])
  first_P = (jnp.arange(batch)[:, None] * window + block_N[None] * size).reshape(-1)
  slots = expert_choice.pack(choice, count_P, first_P, sizes[-1])
  y_TxD = apply_slots(folded(x_BxWxD), slots, experts, sizes, over)
  choosers_BxW = choice.choosers_PxS.reshape(batch, -1)[:, :window]
  load_BxE = choice.taken_PxExC.sum(2).reshape(*count_BxN.shape, -1).sum(1)
  return y_TxD.reshape(x_BxWxD.shape), choosers_BxW, load_BxE


def _shares(load_E: Array, kept_T: Array, pairs: Array, live_T: Array) -> dict[str, Array]:
  """See `Moe`.

  Args:
    kept_T: experts that compute each token, 0 for padding.
    pairs: of a token and an expert, before any is dropped.
  """
  tokens = jnp.maximum(live_T.sum(), 1)
  return {
    "load_YxE": load_E,
    "per_token_Y": kept_T.sum() / tokens,
    "unchosen_Y": ((kept_T == 0) & live_T).sum() / tokens,
    "dropped_Y": 1 - kept_T.sum() / jnp.maximum(pairs, 1),
  }
