"""Rows whose block slides on: it begins at their first masked slot, wherever that is.

A forward reads what is known before what is masked, each token at its own position, and attention
is causal in that order: a mask sees all that is known of its block (WeDLM, arXiv 2512.22737). Known
tokens see no mask and nothing known behind them. So the keys of those before the first mask are
what they would be in finished text; the forward after they were written keeps them.
"""

import jax.numpy as jnp

from dlm.sampling import ends
from dlm.sampling.canvas import at_slot, masked
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import LoopState
from dlm.types import Array, Progress


def known_first(at: Progress, slot_BxW: Array) -> Array:
  """[B, W]: the order in which the slots of a window are read, as indices into it.

  What is known up to the end of the block, then its masks, then what lies behind the block, which
  nothing before sees; padding last.
  """
  behind_BxL = at.slot_L[None, :] >= at.reach_B[:, None]
  part_BxL = jnp.where(behind_BxL, 2, at.masked_BxL.astype(jnp.int32))
  part_BxL = jnp.where(at.inside_BxL, part_BxL, 3)
  part_BxW = jnp.where(slot_BxW < len(at.slot_L), at_slot(part_BxL, slot_BxW), 3)
  return jnp.argsort(part_BxW, axis=1, stable=True)


def advance(sampler: Sampler, state: LoopState, decides_B: Array) -> LoopState:
  """Blocks begin at the next masked slot; rows without one, or that stop before it, are done."""
  canvas = state.canvas
  masked_BxL = masked(canvas, sampler.mask_id)
  left_B = masked_BxL.any(-1)
  stopped_B = ends.stopped(sampler, canvas, masked_BxL, ~left_B)
  spent_B = canvas.forwards_Bx3.sum(-1) >= sampler.max_forwards
  done_B = canvas.done_B | (decides_B & (stopped_B | ~left_B)) | spent_B
  moves_B = decides_B & ~done_B
  start_B = jnp.where(moves_B, jnp.argmax(masked_BxL, axis=1), canvas.start_B)
  step_B = jnp.where(moves_B & (start_B > canvas.start_B), 0, state.step_B)
  return state.replace(canvas=canvas.replace(start_B=start_B, done_B=done_B), step_B=step_B)
