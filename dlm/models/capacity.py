"""How many tokens an expert takes from a pool: schedules over the noise level (EC-DLM).

arXiv 2604.01622, specs moe_distill_rl 1.4 and 1.5: the level says how many experts a token of the
pool has on average, and the pool's tokens divided among the experts are what each may take.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

from dlm.models.moe_config import MoeConfig
from dlm.types import Array

SIZES = 6  # of the packed buffer: each is compiled


def _bell(level: Array, sigma: float) -> Array:
  foot = math.exp(-0.125 / sigma**2)
  return jnp.clip((jnp.exp(-((level - 0.5) ** 2) / (2 * sigma**2)) - foot) / (1 - foot), 0, 1)


# From a noise level in [0, 1] to the share of the way from the least to the most.
SHARES: dict[str, Callable[[Array, float], Array]] = {
  "linear": lambda level, sigma: level,
  "linear_reverse": lambda level, sigma: 1 - level,
  "cosine": lambda level, sigma: (1 - jnp.cos(math.pi * level)) / 2,
  "cosine_reverse": lambda level, sigma: (1 + jnp.cos(math.pi * level)) / 2,
  "bell": lambda level, sigma: 1 - 4 * (level - 0.5) ** 2,
  "bell_gaussian": _bell,
  "bell_gaussian_reverse": lambda level, sigma: 1 - _bell(level, sigma),
}


def per_token(moe: MoeConfig, level_P: Array) -> Array:
  """Experts a token has on average, int32 [P]; rounded half to even."""
  if not moe.reads_noise:
    return jnp.full(level_P.shape, moe.per_token, jnp.int32)
  least, most = moe.per_token_range
  share_P = SHARES[moe.schedule](level_P.astype(jnp.float32), moe.sigma)
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
