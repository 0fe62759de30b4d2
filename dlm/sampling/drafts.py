"""Rows whose policy drafts: tokens stand on the canvas before they are settled."""

import jax.numpy as jnp

from dlm.sampling import ends, guidance
from dlm.sampling.sampler import Sampler
from dlm.types import Array, State


def advance(sampler: Sampler, state: State, advance_B: Array, decides_B: Array) -> State:
  """Rows move on by what is settled; keys of the rest are forgotten, and at the end its tokens.

  The block then starts with the last settled token, whose keys its next forward computes. Rollback
  is the length of the cache: a slot that is not filled is never seen.
  """
  canvas = state.canvas
  start_B = canvas.start_B + jnp.where(decides_B, advance_B, 0)
  slot_L = jnp.arange(canvas.tokens_BxL.shape[1])
  settled_BxL = slot_L[None, :] <= start_B[:, None]
  stops = sampler.on_eos in ("stop", "stop_block")
  stopped_B = (ends.written(sampler, canvas) & settled_BxL).any(-1) & stops
  left_B = (canvas.open_BxL & ~settled_BxL).any(-1)
  spent_B = canvas.forwards_Bx3.sum(-1) >= sampler.max_forwards
  done_B = canvas.done_B | (decides_B & (stopped_B | ~left_B | spent_B))
  unsettled_BxL = canvas.open_BxL & ~settled_BxL & done_B[:, None]
  cached_BxS = jnp.broadcast_to(slot_L[None, :] < start_B[:, None], canvas.open_BxL.shape)
  if sampler.guidance:
    cached_BxS = guidance.twice(cached_BxS)
  return state.replace(
    canvas=canvas.replace(
      start_B=start_B,
      done_B=done_B,
      tokens_BxL=jnp.where(unsettled_BxL, sampler.mask_id, canvas.tokens_BxL),
    ),
    cache=state.cache.replace(filled_BxS=state.cache.filled_BxS & cached_BxS),
    cached_B=start_B,
  )
