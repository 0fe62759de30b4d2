"""Each token takes its best experts; an expert may refuse those beyond its capacity."""

import math

import jax
import jax.numpy as jnp

from dlm.models.moe import gate_scales, pools
from dlm.models.moe.config import MoeConfig
from dlm.models.moe.experts import Routing, Slots
from dlm.types import Array

SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def token_choice(
  moe: MoeConfig, logits_TxE: Array, bias_E: Array | None, live_BxW: Array | None = None
) -> tuple[Array, Array]:
  """Each token's experts, int32 [T, K], and their weights [T, K] in the logits' type.

  In the order of the choice: highest (biased) score first, the lowest index of equals. `bias` as
  `MoeConfig.bias` says; it is set from outside, so no gradient reaches it. `live`: real tokens, of
  the rows that T is made of; needed where pools admit experts.
  """
  score_TxE = SCORES[moe.score](logits_TxE.astype(jnp.float32))
  rank_TxE = biased(moe, logits_TxE, bias_E) if moe.bias_to == "logits" else score_TxE
  if bias_E is not None and moe.bias_to == "score":
    rank_TxE += jax.lax.stop_gradient(bias_E.astype(jnp.float32))[None]
  eligible_TxE = _best_groups(moe, rank_TxE)
  if moe.admitted:
    rank_BxWxE = rank_TxE.reshape(*live_BxW.shape, moe.experts)
    eligible_TxE = pools.among_admitted(moe, rank_BxWxE, live_BxW).reshape(rank_TxE.shape)
  _, chosen_TxK = jax.lax.top_k(eligible_TxE, moe.per_token)
  weighing_TxE = rank_TxE if moe.bias_in_weight else score_TxE
  weight_TxK = jnp.take_along_axis(weighing_TxE, chosen_TxK, axis=1)
  if moe.renormalise:
    weight_TxK /= weight_TxK.sum(1, keepdims=True) + 1e-20
  scale = moe.scale
  if moe.match_shared:
    scale *= gate_scales.of_best(moe.experts, moe.per_token, moe.shared // moe.mlp, moe.score)
  return chosen_TxK, scale * weight_TxK.astype(logits_TxE.dtype)


def biased(moe: MoeConfig, logits_TxE: Array, bias_E: Array | None) -> Array:
  """Logits plus bias, float32."""
  wide_TxE = logits_TxE.astype(jnp.float32)
  if bias_E is None:
    return wide_TxE
  return wide_TxE + jax.lax.stop_gradient(bias_E.astype(jnp.float32))[None]


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


def capacity(assignments: int, experts: int, factor: float) -> int:
  """Tokens that an expert keeps: an even share of all pairs of token and expert, times `factor`."""
  return math.ceil(assignments / experts * factor)


def drop_rank(
  moe: MoeConfig, logits_TxE: Array, bias_E: Array | None, chosen_TxK: Array, weight_TxK: Array
) -> Array:
  """What an expert at its capacity goes by [T, K]: the weight.

  Where the bias joins the logits, EC-DLM's code ranks by the softmax of the chosen experts' biased
  logits, though their weights are those without the bias.
  """
  if moe.bias_to == "score":
    return weight_TxK
  biased_TxE = biased(moe, logits_TxE, bias_E)
  return jax.nn.softmax(jnp.take_along_axis(biased_TxE, chosen_TxK, axis=1), axis=1)


def keep(
  chosen_TxK: Array, weight_TxK: Array, rank_TxK: Array, live_T: Array, experts: int, places: int
) -> tuple[Slots, Array]:
  """Each expert keeps the `places` live tokens of highest rank, the first of equals.

  Weights stay as they are: a token that loses an expert gets less. Also bool [T, K]: what is kept.
  """
  token_Tx1 = jnp.arange(len(chosen_TxK))[:, None]

  def by_expert(x_TxK: Array, fill: float) -> Array:
    wide_TxK = jnp.where(live_T[:, None], x_TxK.astype(jnp.float32), fill)
    return jnp.full((experts, len(chosen_TxK)), fill).at[chosen_TxK, token_Tx1].set(wide_TxK)

  rank_ExT = by_expert(jax.lax.stop_gradient(rank_TxK), -jnp.inf)
  best_ExC, token_ExC = jax.lax.top_k(rank_ExT, places)
  weight_ExC = jnp.take_along_axis(by_expert(weight_TxK, 0.0), token_ExC, axis=1)
  slots = Slots(token_ExC, weight_ExC, jnp.asarray(places, jnp.int32))
  kept_ExT = jnp.zeros(rank_ExT.shape, bool)
  kept_ExT = kept_ExT.at[jnp.arange(experts)[:, None], token_ExC].set(best_ExC > -jnp.inf)
  return slots, kept_ExT[chosen_TxK, token_Tx1]
