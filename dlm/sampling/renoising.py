"""Blocks that begin as random ids instead of masks, for policies that renoise."""

import jax

from dlm.sampling.canvas import in_block, scope, write
from dlm.sampling.sampler import Sampler
from dlm.types import Array, Canvas


def begin(sampler: Sampler, canvas: Canvas, rows_B: Array) -> Canvas:
  """In `rows`, masked slots of the active block become random ids; they are not written yet."""
  if not sampler.policy.renoises:
    return canvas
  slot_BxA = scope(sampler, canvas)
  # Of this turn's keys the loop takes 0 and 1.
  key_B = jax.vmap(lambda key, turn: jax.random.fold_in(jax.random.fold_in(key, turn), 2))(
    canvas.key_B, canvas.turn_B
  )
  id_BxA = sampler.policy.noise(key_B, slot_BxA.shape[1], sampler.mask_id)
  where_BxA = in_block(sampler, canvas) & rows_B[:, None]
  return write(canvas, where_BxA, slot_BxA, id_BxA)
