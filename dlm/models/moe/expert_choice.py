"""Each expert takes its best tokens of every pool (EC-DLM, arXiv 2604.01622).

A token has as many experts as chose it: none, one, or all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dlm.models.moe import gate_scales
from dlm.models.moe.config import MoeConfig
from dlm.models.moe.experts import Slots
from dlm.types import Array


class Choice(NamedTuple):
  """What E experts chose of P pools of S tokens: C places each, best first, some of them empty."""

  token_PxExC: Array  # int32, place in the pool
  taken_PxExC: Array  # bool: not empty
  gates_PxExC: Array  # weight of the expert's answer, in the logits' type; 0 where empty
  choosers_PxS: Array  # int32, experts that chose the token


def choose(
  moe: MoeConfig, logits_PxSxE: Array, live_PxS: Array, count_P: Array, places: int
) -> Choice:
  """Of equal tokens the one at the lowest position is chosen. Softmax and sums in float32.

  Args:
    live_PxS: bool, tokens that may be chosen.
    count_P: how many tokens each expert takes; at most `places` and the pool's live tokens.
    places: C.
  """
  pools, size, experts = logits_PxSxE.shape
  wide_PxSxE = logits_PxSxE.astype(jnp.float32)
  by_score = moe.score == "softmax" and not moe.renormalise
  rank_PxSxE = jax.nn.softmax(wide_PxSxE) if by_score else wide_PxSxE
  rank_PxSxE = jnp.where(live_PxS[:, :, None], jax.lax.stop_gradient(rank_PxSxE), -jnp.inf)
  _, token_PxExC = jax.lax.top_k(rank_PxSxE.swapaxes(1, 2), places)
  taken_PxExC = jnp.broadcast_to(
    jnp.arange(places)[None, None] < count_P[:, None, None], token_PxExC.shape
  )
  pool = jnp.arange(pools)[:, None, None]
  expert = jnp.arange(experts)[None, :, None]
  chosen_PxSxE = jnp.zeros((pools, size, experts), bool)
  chosen_PxSxE = chosen_PxSxE.at[pool, token_PxExC, expert].set(taken_PxExC)
  choosers_PxS = chosen_PxSxE.sum(-1, dtype=jnp.int32)
  gates_PxSxE = _gates(moe, wide_PxSxE, chosen_PxSxE).astype(logits_PxSxE.dtype)
  gates_PxSxE *= jnp.asarray(moe.scale, gates_PxSxE.dtype)
  table = moe.gate_scales
  if moe.match_shared:
    table = gate_scales.by_choosers(experts, moe.shared // moe.mlp)
  if table:
    gates_PxSxE *= jnp.asarray(table, gates_PxSxE.dtype)[choosers_PxS][:, :, None]
  gates_PxExC = jnp.take_along_axis(gates_PxSxE.swapaxes(1, 2), token_PxExC, axis=2)
  return Choice(token_PxExC, taken_PxExC, jnp.where(taken_PxExC, gates_PxExC, 0), choosers_PxS)


def _gates(moe: MoeConfig, logits_PxSxE: Array, chosen_PxSxE: Array) -> Array:
  """Weights of a token's experts, 0 for those that did not choose it."""
  if not moe.renormalise:
    score = jax.nn.softmax if moe.score == "softmax" else jax.nn.sigmoid
    return jnp.where(chosen_PxSxE, score(logits_PxSxE), 0)
  if moe.score == "softmax":
    seen_PxSxE = jnp.where(chosen_PxSxE, logits_PxSxE, -jnp.inf)
    top_PxSx1 = jax.lax.stop_gradient(seen_PxSxE.max(-1, keepdims=True))
    # A token that nobody chose: exp(-inf - 0) = 0 instead of exp(-inf + inf) = NaN.
    score_PxSxE = jnp.exp(seen_PxSxE - jnp.where(top_PxSx1 == -jnp.inf, 0, top_PxSx1))
  else:
    score_PxSxE = jnp.where(chosen_PxSxE, jax.nn.sigmoid(logits_PxSxE), 0)
  return score_PxSxE / (score_PxSxE.sum(-1, keepdims=True) + 1e-20)


def pack(choice: Choice, count_P: Array, first_P: Array, size: int) -> Slots:
  """The choices of all pools in one buffer per expert, pool after pool, without gaps between them.

  As all experts take equally many tokens of a pool, a slot belongs to one pool whatever the expert.

  Args:
    first_P: row of each pool's first token.
    size: C of the buffer, at least the sum of `count`.
  """
  end_P = jnp.cumsum(count_P)
  slot_C = jnp.arange(size)
  pool_C = jnp.minimum(jnp.searchsorted(end_P, slot_C, side="right"), len(end_P) - 1)
  used_C = slot_C < end_P[-1]
  place_C = jnp.where(used_C, slot_C - (end_P - count_P)[pool_C], 0)

  def packed(x_PxExC: Array) -> Array:
    return jnp.where(used_C[None], x_PxExC.swapaxes(0, 1)[:, pool_C, place_C], 0)

  token_ExC = packed(choice.token_PxExC + first_P[:, None, None])
  return Slots(token_ExC, packed(choice.gates_PxExC).astype(jnp.float32), end_P[-1])
