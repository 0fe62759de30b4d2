"""Experts in place of an MLP, in two steps: a rule chooses, then the chosen compute."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dlm.models import capacity, expert_choice, router_losses, token_choice
from dlm.models.experts import Experts, apply_experts, apply_slots
from dlm.models.layers import SwiGLU
from dlm.models.moe_config import MoeConfig
from dlm.models.presets import ModelConfig
from dlm.types import Array


class Router(nn.Module):
  """float32 logits whatever the activations are: a rounded score is another choice of experts."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_TxD: Array) -> tuple[Array, Array | None]:
    """Logits [T, E] and the bias [E], None where there is none."""
    moe, width = self.config.moe, self.config.width
    # Not split over "expert": small, and every device needs the scores of all experts.
    init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("embed", None))
    kernel_DxE = self.param("kernel", init, (width, moe.experts)).astype(jnp.float32)
    # Accelerators would round the operands of a float32 matmul.
    logits_TxE = jnp.matmul(
      x_TxD.astype(jnp.float32), kernel_DxE, precision=jax.lax.Precision.HIGHEST
    )
    if not moe.bias:
      return logits_TxE, None
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
    return logits_TxE, self.param("bias", zeros, (moe.experts,))


class Kernel(nn.Module):
  """One matrix per expert, normal with variance `gain**2 / fan_in`."""

  shape: tuple[int, int, int]  # experts, in, out
  names: tuple[str, str, str]
  gain: float = 1.0

  @nn.compact
  def __call__(self) -> Array:
    init = nn.initializers.normal(self.gain * self.shape[1] ** -0.5)
    return self.param("kernel", nn.with_logical_partitioning(init, self.names), self.shape)


class Moe(nn.Module):
  """Routed experts plus, if there is one, the expert that all tokens share.

  With choice "expert" the slots of a pool compete. Pools are the whole row, or blocks of `pool`
  slots cut from the window's start: each copy of a block in [noisy; clean] is a pool of its own,
  and a cached window of whole blocks has the pools that the whole canvas has. With the row as its
  pool a token's experts depend on slots that a cached window leaves out. A pool's noise level is
  the largest of its live slots; clean text says 0.
  """

  config: ModelConfig
  out_gain: float

  @nn.compact
  def __call__(
    self, x_BxWxD: Array, live_BxW: Array, level_BxW: Array | None
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the output and the router's facts, which `ModelOutput.aux` has for every layer.

    Facts of a layer are named as those of all: axis Y comes with the stack.
      router_logits_YxBxWxE; of choice "token" experts_YxBxWxK and weights_YxBxWxK, before any is
      dropped; of choice "expert" choosers_YxBxW, how many experts chose the token;
      load_YxE, tokens of each expert, before any is dropped;
      per_token_Y, experts of a token on average; unchosen_Y, share of tokens without any;
      dropped_Y, share of pairs of token and expert that capacity drops;
      z_loss_Y, balance_loss_Y, and router_loss_Y, their sum with the coefficients.
    Counts and shares are of live tokens; padding is never chosen and takes nobody's place.

    Args:
      live_BxW: bool, real tokens.
      level_BxW: noise level; may be None where `MoeConfig.reads_noise` is False.
    """
    width, moe = self.config.width, self.config.moe
    x_TxD, live_T = x_BxWxD.reshape(-1, width), live_BxW.reshape(-1)
    logits_TxE, bias_E = Router(self.config, name="router")(x_TxD)
    inward, outward = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
    experts = Experts(
      Kernel((moe.experts, width, moe.mlp), inward, name="gate")(),
      Kernel((moe.experts, width, moe.mlp), inward, name="up")(),
      Kernel((moe.experts, moe.mlp, width), outward, gain=self.out_gain, name="down")(),
    )
    if moe.choice == "expert":
      y_TxD, facts = _experts_choose(moe, x_TxD, logits_TxE, live_BxW, level_BxW, experts)
    else:
      y_TxD, facts = _tokens_choose(moe, x_TxD, logits_TxE, bias_E, live_T, experts)
    y_BxWxD = y_TxD.reshape(x_BxWxD.shape)
    if moe.shared:
      y_BxWxD += SwiGLU(width, moe.shared, self.out_gain, name="shared")(x_BxWxD)

    facts = {
      name: fact.reshape(*live_BxW.shape, *fact.shape[1:]) if "BxW" in name else fact
      for name, fact in {"router_logits_YxBxWxE": logits_TxE, **facts}.items()
    }
    facts["z_loss_Y"] = router_losses.z_loss(logits_TxE, live_T)
    facts["router_loss_Y"] = (
      moe.z_loss * facts["z_loss_Y"] + moe.balance_loss * facts["balance_loss_Y"]
    )
    return y_BxWxD, facts


def _tokens_choose(
  moe: MoeConfig,
  x_TxD: Array,
  logits_TxE: Array,
  bias_E: Array | None,
  live_T: Array,
  experts: Experts,
) -> tuple[Array, dict[str, Array]]:
  chosen_TxK, weight_TxK = token_choice.token_choice(moe, logits_TxE, bias_E)
  live_TxK = jnp.broadcast_to(live_T[:, None], chosen_TxK.shape)
  load_E = jnp.zeros(moe.experts, jnp.int32).at[chosen_TxK].add(live_TxK.astype(jnp.int32))
  pairs, kept_T = live_TxK.sum(), live_TxK.sum(1)
  if moe.capacity_factor:
    places = token_choice.capacity(chosen_TxK.size, moe.experts, moe.capacity_factor)
    rank_TxK = token_choice.drop_rank(moe, logits_TxE, bias_E, chosen_TxK, weight_TxK)
    slots, kept_TxK = token_choice.keep(
      chosen_TxK, weight_TxK, rank_TxK, live_T, moe.experts, min(places, len(x_TxD))
    )
    kept_T = kept_TxK.sum(1)
    y_TxD = apply_slots(x_TxD, slots, experts, (slots.token_ExC.shape[1],))
  else:
    y_TxD = apply_experts(x_TxD, token_choice.route(chosen_TxK, weight_TxK), experts)
  return y_TxD, {
    "experts_YxBxWxK": chosen_TxK,
    "weights_YxBxWxK": weight_TxK,
    **_shares(load_E, kept_T, pairs, live_T),
    "balance_loss_Y": router_losses.token_balance(logits_TxE, load_E, moe.per_token, live_T),
  }


def _experts_choose(
  moe: MoeConfig,
  x_TxD: Array,
  logits_TxE: Array,
  live_BxW: Array,
  level_BxW: Array | None,
  experts: Experts,
) -> tuple[Array, dict[str, Array]]:
  batch, window = live_BxW.shape
  size = moe.pool or window
  cuts = -(-window // size)

  def cut(x_T: Array) -> Array:
    """[T, ...] -> [P, S, ...]; the last block of a row is filled up."""
    x_BxW = x_T.reshape(batch, window, *x_T.shape[1:])
    pad = ((0, 0), (0, cuts * size - window), *[(0, 0)] * (x_T.ndim - 1))
    return jnp.pad(x_BxW, pad).reshape(batch * cuts, size, *x_T.shape[1:])

  live_PxS = cut(live_BxW.reshape(-1))
  level_P = jnp.zeros(batch * cuts)
  if moe.reads_noise:
    level_P = jnp.where(live_PxS, cut(level_BxW.reshape(-1)), 0).max(1)
  per_token_P = capacity.per_token(moe, level_P)
  count_P = capacity.tokens_per_expert(per_token_P, live_PxS.sum(1), moe.experts)
  sizes = capacity.buffer_sizes(moe, batch * cuts, size)
  places = sizes[-1] // len(level_P)
  choice = expert_choice.choose(moe, cut(logits_TxE), live_PxS, count_P, places)
  first_P = (jnp.arange(batch)[:, None] * window + jnp.arange(cuts)[None] * size).reshape(-1)
  slots = expert_choice.pack(choice, count_P, first_P, sizes[-1])

  choosers_T = choice.choosers_PxS.reshape(batch, -1)[:, :window].reshape(-1)
  live_T, is_pool_P = live_BxW.reshape(-1), live_PxS.any(1)
  mean_per_token = per_token_P.sum(where=is_pool_P) // jnp.maximum(is_pool_P.sum(), 1)
  return apply_slots(x_TxD, slots, experts, sizes), {
    "choosers_YxBxW": choosers_T,
    **_shares(choice.taken_PxExC.sum((0, 2)), choosers_T, choosers_T.sum(), live_T),
    "balance_loss_Y": router_losses.expert_balance(
      logits_TxE, choosers_T, jnp.maximum(mean_per_token, 1), live_T
    ),
  }


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
