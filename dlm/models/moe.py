"""Experts in place of an MLP, in two steps: a rule chooses, then the chosen compute.

`token_choice` is the only rule here: every token takes its best experts. What leaves a rule is a
`Routing`, and `apply_experts` asks nothing more of it, so it serves any rule.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dlm.models.layers import SwiGLU
from dlm.models.presets import ModelConfig, MoeConfig
from dlm.types import Array

SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}

EXPERT_PRODUCT = "expert_product"  # what a rematerialising backward may keep


class Routing(NamedTuple):
  """P pairs of a token and an expert, in any order; a token or an expert may have any number."""

  token_P: Array  # int32, row of the tokens
  chosen_P: Array  # int32, the expert
  gates_P: Array  # float32, the weight of its answer


class Experts(NamedTuple):
  """Kernels of E SwiGLU networks of width F."""

  gate_ExDxF: Array
  up_ExDxF: Array
  down_ExFxD: Array


def token_choice(moe: MoeConfig, logits_TxE: Array, bias_E: Array | None) -> tuple[Array, Array]:
  """Each token's experts, int32 [T, K], and their weights, float32 [T, K].

  In the order of the choice: highest (biased) score first, the lowest index of equals. `bias` as
  `MoeConfig.bias` says; it is set from outside, so no gradient reaches it.
  """
  score_TxE = SCORES[moe.score](logits_TxE.astype(jnp.float32))
  biased_TxE = score_TxE
  if bias_E is not None:
    biased_TxE += jax.lax.stop_gradient(bias_E.astype(jnp.float32))[None]
  _, chosen_TxK = jax.lax.top_k(_best_groups(moe, biased_TxE), moe.per_token)
  weighing_TxE = biased_TxE if moe.bias_in_weight else score_TxE
  weight_TxK = jnp.take_along_axis(weighing_TxE, chosen_TxK, axis=1)
  if moe.renormalise:
    weight_TxK /= weight_TxK.sum(1, keepdims=True) + 1e-20
  return chosen_TxK, moe.scale * weight_TxK


def _best_groups(moe: MoeConfig, score_TxE: Array) -> Array:
  """The scores, -inf outside the `top_groups` groups with the largest sum of two best."""
  if moe.top_groups == moe.groups:
    return score_TxE
  tokens, experts = score_TxE.shape
  score_TxGxI = score_TxE.reshape(tokens, moe.groups, -1)
  two_best_TxGx2, _ = jax.lax.top_k(score_TxGxI, 2)
  _, best_TxN = jax.lax.top_k(two_best_TxGx2.sum(-1), moe.top_groups)
  group_1x1xG = jnp.arange(moe.groups)[None, None]
  stays_TxG = (best_TxN[:, :, None] == group_1x1xG).any(1)
  return jnp.where(stays_TxG[:, :, None], score_TxGxI, -jnp.inf).reshape(tokens, experts)


def route(chosen_TxK: Array, weight_TxK: Array) -> Routing:
  token_TxK = jnp.broadcast_to(
    jnp.arange(chosen_TxK.shape[0], dtype=jnp.int32)[:, None], chosen_TxK.shape
  )
  return Routing(token_TxK.ravel(), chosen_TxK.ravel(), weight_TxK.ravel())


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
  """Routed experts plus, if there is one, the expert that all tokens share."""

  config: ModelConfig
  out_gain: float

  @nn.compact
  def __call__(self, x_BxWxD: Array) -> tuple[Array, dict[str, Array]]:
    """Returns the output and the router's facts, as `ModelOutput.aux` has them for each layer."""
    width, moe = self.config.width, self.config.moe
    batch, window, _ = x_BxWxD.shape
    x_TxD = x_BxWxD.reshape(-1, width)
    logits_TxE, bias_E = Router(self.config, name="router")(x_TxD)
    chosen_TxK, weight_TxK = token_choice(moe, logits_TxE, bias_E)

    inward, outward = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
    experts = Experts(
      Kernel((moe.experts, width, moe.mlp), inward, name="gate")(),
      Kernel((moe.experts, width, moe.mlp), inward, name="up")(),
      Kernel((moe.experts, moe.mlp, width), outward, gain=self.out_gain, name="down")(),
    )
    y_TxD = apply_experts(x_TxD, route(chosen_TxK, weight_TxK), experts)
    y_BxWxD = y_TxD.reshape(x_BxWxD.shape)
    if moe.shared:
      y_BxWxD += SwiGLU(width, moe.shared, self.out_gain, name="shared")(x_BxWxD)
    facts = {
      "router_logits_BxWxE": logits_TxE,
      "experts_BxWxK": chosen_TxK,
      "weights_BxWxK": weight_TxK,
    }
    return y_BxWxD, {name: fact.reshape(batch, window, -1) for name, fact in facts.items()}
