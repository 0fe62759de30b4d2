"""How many tokens an expert takes from a pool, by the schedule of its noise level (EC-DLM).

arXiv 2604.01622: the level says how many experts a token of the pool has on average; that many
places, shared evenly among the experts, are what each of them takes.
"""

import jax.numpy as jnp

from dlm.models.moe.config import MoeConfig
from dlm.models.moe.schedules import SCHEDULES
from dlm.types import Array

SIZES = 6  # of the packed buffer: each is compiled


def per_token(moe: MoeConfig, level_P: Array) -> Array:
  """Experts a token has on average, int32 [P]; rounded half to even."""
  if not moe.reads_noise:
    return jnp.full(level_P.shape, moe.per_token, jnp.int32)
  least, most = moe.per_token_range
  share_P = SCHEDULES[moe.schedule].share(level_P.astype(jnp.float32), moe.sigma)
  return jnp.clip(jnp.round(least + share_P * (most - least)), least, most).astype(jnp.int32)


def tokens_per_expert(per_token_P: Array, tokens_P: Array, experts: int) -> Array:
  """Tokens that each expert takes of a pool with so many: at least 1, of an empty pool 0."""
  return jnp.minimum(jnp.maximum(tokens_P * per_token_P // experts, 1), tokens_P)


def extremes(moe: MoeConfig, size: int) -> tuple[int, int]:
  """Least and most tokens that an expert takes of a full pool of `size`."""
  ends = moe.per_token_range or (moe.per_token, moe.per_token)
  return tuple(max(size * k // moe.experts, 1) for k in ends)


def buffer_sizes(moe: MoeConfig, pools: int, size: int) -> tuple[int, ...]:
  """Slots of an expert's buffer over all pools, ascending; the last holds whatever levels ask."""
  least, most = extremes(moe, size)
  steps = min(SIZES, pools * (most - least) + 1)
  if steps == 1:
    return (pools * most,)
  return tuple(pools * least + -(-i * pools * (most - least) // (steps - 1)) for i in range(steps))
