"""Pools: slots whose tokens compete for experts, or choose among the same few."""

import jax
import jax.numpy as jnp

from dlm.models.moe.config import MoeConfig
from dlm.types import Array


def cut(x_BxW: Array, size: int) -> Array:
  """[B, W, ...] -> [P, S, ...]; the last block of a row is filled up."""
  pad = ((0, 0), (0, -x_BxW.shape[1] % size), *[(0, 0)] * (x_BxW.ndim - 2))
  return jnp.pad(x_BxW, pad).reshape(-1, size, *x_BxW.shape[2:])


def admitted(moe: MoeConfig, score_BxWxE: Array, live_BxW: Array) -> Array:
  """Experts of each pool, int32 [P, C]: those with the highest score of any live token.

  The lowest index of equals.
  """
  size = moe.pool or live_BxW.shape[1]
  live_PxSx1 = cut(live_BxW, size)[:, :, None]
  best_PxE = jnp.where(live_PxSx1, cut(score_BxWxE, size), -jnp.inf).max(1)
  return jax.lax.top_k(best_PxE, moe.admitted)[1]


def among_admitted(moe: MoeConfig, score_BxWxE: Array, live_BxW: Array) -> Array:
  """The scores, -inf where a token's pool does not admit the expert."""
  batch, window, experts = score_BxWxE.shape
  ids_PxC = admitted(moe, score_BxWxE, live_BxW)
  admitted_PxE = jnp.zeros((len(ids_PxC), experts), bool)
  admitted_PxE = admitted_PxE.at[jnp.arange(len(ids_PxC))[:, None], ids_PxC].set(True)
  slots_BxWxE = jnp.repeat(admitted_PxE.reshape(batch, -1, experts), moe.pool or window, axis=1)
  return jnp.where(slots_BxWxE[:, :window], score_BxWxE, -jnp.inf)
