"""Blocks that begin as random ids instead of masks, for policies with `noise`."""

import jax
import jax.numpy as jnp

from dlm.sampling.forward import in_block, scope
from dlm.sampling.sampler import Sampler
from dlm.types import Array, Canvas


def begin(sampler: Sampler, canvas: Canvas, rows_B: Array) -> Canvas:
  """In `rows`, masked slots of the active block become random ids; they are not written yet."""
  noise = getattr(sampler.policy, "noise", None)
  if noise is None:
    return canvas
  batch, slots = canvas.tokens_BxL.shape
  slot_BxA = scope(sampler, canvas)
  # Of this turn's keys the loop takes 0 and 1.
  key_B = jax.vmap(lambda key, turn: jax.random.fold_in(jax.random.fold_in(key, turn), 2))(
    canvas.key_B, canvas.turn_B
  )
  into_BxA = jnp.where(in_block(sampler, canvas) & rows_B[:, None], slot_BxA, slots)
  id_BxA = noise(key_B, slot_BxA.shape[1], sampler.mask_id)
  row_Bx1 = jnp.arange(batch)[:, None]
  return canvas.replace(tokens_BxL=canvas.tokens_BxL.at[row_Bx1, into_BxA].set(id_BxA, mode="drop"))
