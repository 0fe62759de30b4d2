"""Absorbing diffusion: noise replaces tokens by the mask id."""

import jax
import jax.numpy as jnp

from dlm.types import Array


def mask_out(tokens_BxL: Array, masked_BxL: Array, mask_id: int) -> Array:
  """The noisy tokens: `mask_id` where masked."""
  return jnp.where(masked_BxL, jnp.asarray(mask_id, tokens_BxL.dtype), tokens_BxL)


def lowest(score_BxL: Array, among_BxL: Array, count_B: Array) -> Array:
  """Bool [B, L]: the `count` lowest scores of each row among those allowed; ties by position.

  Rows may have any axes before L.
  """
  order_BxL = jnp.argsort(jnp.where(among_BxL, score_BxL, jnp.inf), axis=-1, stable=True)
  rank_BxL = jnp.argsort(order_BxL, axis=-1, stable=True)
  return among_BxL & (rank_BxL < count_B[..., None])


def highest_in_blocks(score_BxL: Array, start_BxL: Array, count_BxL: Array) -> Array:
  """Bool [B, L]: the `count` highest scores of each block; of equal ones the earlier.

  Args:
    start_BxL: first slot of each slot's block; a block is a run of slots.
    count_BxL: the same within a block.
  """
  rows, length = score_BxL.shape
  slot_BxL = jnp.broadcast_to(jnp.arange(length), score_BxL.shape)
  # Blocks stay where they are, and within each the highest score comes first.
  start_BxL, _, chosen_BxL = jax.lax.sort((start_BxL, -score_BxL, slot_BxL), num_keys=2)
  among_BxL = slot_BxL - start_BxL < jnp.take_along_axis(count_BxL, chosen_BxL, axis=1)
  row_Bx1 = jnp.arange(rows)[:, None]
  return jnp.zeros(score_BxL.shape, bool).at[row_Bx1, chosen_BxL].set(among_BxL)


def later_first(u_BxL: Array, offset_BxL: Array, rate_BxL: Array) -> Array:
  """Scores whose k highest are a draw of k slots in proportion to exp(rate * offset).

  Gumbel noise, its logarithms kept from 0 as in NeMo Automodel's `corrupt_blockwise`.
  """
  return rate_BxL * offset_BxL - jnp.log(-jnp.log(u_BxL + 1e-9) + 1e-9)
