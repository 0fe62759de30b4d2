"""The definition: all logits at once, sorted where that is the plainest way."""

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.token_stats.noise import gumbel
from kernels_pallas.token_stats.spec import Inputs, StatSpec, TokenStats

Array = jax.Array


def token_stats(
  hidden_RxD: Array,
  unembed_VxD: Array,
  spec: StatSpec,
  inputs: Inputs,
  *,
  held: vocabulary.Held,
  soft_cap: float | None,
) -> TokenStats:
  """See `kernels_pallas.token_stats.token_stats`."""
  if held.axis is not None:
    raise NotImplementedError("the definition is of a vocabulary that is not split")
  ids_V = jnp.arange(unembed_VxD.shape[0], dtype=jnp.int32)
  allowed_V = vocabulary.allowed(ids_V, spec.forbidden)
  divide_Rx1 = None if inputs.divide_R is None else inputs.divide_R[:, None]
  z_RxV = vocabulary.logits(hidden_RxD, unembed_VxD, soft_cap, divide_Rx1)
  allowed_RxV = allowed_V[None, :]
  if inputs.allowed_RxU is not None:
    allowed_RxV &= vocabulary.bits(inputs.allowed_RxU, ids_V)
  plain_RxV = z_RxV = jnp.where(allowed_RxV, z_RxV, -jnp.inf)
  eligible_RxV = jnp.where(jnp.isnan(z_RxV), -jnp.inf, z_RxV)

  divisor = spec.divisor(inputs.temperature_Rx1)
  kept_RxV = jnp.ones_like(eligible_RxV, dtype=bool)
  if spec.cuts(ids_V.size, inputs):
    share_Rx1 = spec.share(inputs, len(z_RxV))[:, None]
    kept_RxV = eligible_RxV >= _cut(eligible_RxV, spec, share_Rx1, divisor)
  tempered_RxV = eligible_RxV / divisor
  score_RxV = jnp.where(kept_RxV, tempered_RxV, -jnp.inf)
  eligible_RxV = spec.told(eligible_RxV, tempered_RxV, score_RxV)
  z_RxV = jnp.where(jnp.isnan(z_RxV), jnp.nan, eligible_RxV)
  if spec.draws:
    gumbel_RxV = gumbel(inputs.key_data_Rx2, ids_V)
    if spec.per_row:
      gumbel_RxV = jnp.where(inputs.temperature_Rx1 > 0, gumbel_RxV, 0)
    score_RxV = score_RxV + gumbel_RxV
  some_R = (score_RxV > -jnp.inf).any(1)
  fallback = vocabulary.first_allowed(ids_V.size, spec.forbidden)
  token_R = jnp.where(some_R, jnp.argmax(score_RxV, axis=1), fallback).astype(jnp.int32)

  lse_R = jax.nn.logsumexp(z_RxV, axis=1)
  stats = TokenStats(
    token=token_R,
    logit=vocabulary.at_id(eligible_RxV, token_R)[1],
    top1=eligible_RxV.max(1),
    lse=lse_R,
  )
  if spec.top2:
    best_RxV = jnp.argmax(eligible_RxV, axis=1)[:, None] == ids_V[None, :]
    stats.top2 = jnp.where(best_RxV, -jnp.inf, eligible_RxV).max(1)
  if spec.entropy:
    log_p_RxV = jax.nn.log_softmax(z_RxV, axis=1)
    p_RxV = jnp.exp(log_p_RxV)
    entropy_R = -jnp.where(p_RxV > 0, p_RxV * log_p_RxV, 0).sum(1)
    stats.entropy = jnp.where(jnp.isfinite(lse_R), entropy_R, jnp.nan)
  if spec.soft:
    soft_RxD = jnp.einsum(
      "rv,vd->rd",
      jax.nn.softmax(z_RxV, axis=1),
      inputs.embed_VxD,
      preferred_element_type=jnp.float32,
    )
    stats.soft = jnp.where(jnp.isfinite(lse_R)[:, None], soft_RxD, jnp.nan)
  if spec.current:
    inside_R, logit_R = vocabulary.at_id(z_RxV, inputs.current_R)
    stats.current = jnp.where(inside_R, logit_R, -jnp.inf)
  if spec.gather:
    inside_RxJ, logit_RxJ = vocabulary.at_ids(plain_RxV, inputs.gather_id_RxJ)
    stats.gathered = jnp.where(inside_RxJ, logit_RxJ, -jnp.inf)
  if spec.best:
    order_RxV = jnp.argsort(eligible_RxV, axis=1, descending=True, stable=True)
    stats.best = order_RxV[:, : spec.best].astype(jnp.int32)
    stats.best_logit = jnp.take_along_axis(eligible_RxV, stats.best, axis=1)
  if spec.outside:
    outside_1xV = vocabulary.allowed(ids_V, spec.outside)[None, :]
    stats.lse_outside = jax.nn.logsumexp(jnp.where(outside_1xV, z_RxV, -jnp.inf), axis=1)
  return stats


def _cut(eligible_RxV: Array, spec: StatSpec, share_Rx1: Array, divisor: float | Array) -> Array:
  """The lowest logit that top-k and top-p keep, [R, 1]."""
  sorted_RxV = jnp.sort(eligible_RxV, axis=1, descending=True)
  cut_Rx1 = sorted_RxV[:, -1:]
  if 0 < spec.top_k < sorted_RxV.shape[1]:
    cut_Rx1 = sorted_RxV[:, spec.top_k - 1 : spec.top_k]
  kept_RxV = sorted_RxV >= cut_Rx1
  counted_RxV = kept_RxV if spec.top_p_of == "top_k" else jnp.ones_like(kept_RxV)
  p_RxV = jax.nn.softmax(jnp.where(counted_RxV, sorted_RxV / divisor, -jnp.inf), axis=1)
  mass_RxV = jnp.cumsum(p_RxV, axis=1)
  needed_RxV = mass_RxV - p_RxV < share_Rx1
  if spec.top_p_rule == "within":
    over_RxV = kept_RxV & (mass_RxV > share_Rx1)
    barrier_Rx1 = jnp.where(over_RxV, sorted_RxV, -jnp.inf).max(1, keepdims=True)
    needed_RxV = (sorted_RxV > barrier_Rx1) | (sorted_RxV == sorted_RxV[:, :1])
  lowest_Rx1 = jnp.where(kept_RxV & needed_RxV, sorted_RxV, jnp.inf).min(1, keepdims=True)
  return jnp.where(share_Rx1 < 1, lowest_Rx1, cut_Rx1)
