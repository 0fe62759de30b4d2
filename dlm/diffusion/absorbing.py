"""Absorbing diffusion: noise replaces tokens by the mask id."""

import jax.numpy as jnp

from dlm.types import Array


def mask_out(tokens_BxL: Array, masked_BxL: Array, mask_id: int) -> Array:
  """The noisy tokens: `mask_id` where masked."""
  return jnp.where(masked_BxL, jnp.asarray(mask_id, tokens_BxL.dtype), tokens_BxL)


def lowest(score_BxL: Array, among_BxL: Array, count_B: Array) -> Array:
  """Bool [B, L]: the `count` lowest scores of each row among those allowed; ties by position."""
  order_BxL = jnp.argsort(jnp.where(among_BxL, score_BxL, jnp.inf), axis=-1, stable=True)
  rank_BxL = jnp.argsort(order_BxL, axis=-1, stable=True)
  return among_BxL & (rank_BxL < count_B[:, None])
