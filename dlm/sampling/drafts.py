"""Rows whose policy drafts: tokens stand on the canvas before they are settled."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.sampling import ends, guidance
from dlm.sampling.canvas import write
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.sampling.state import LoopState
from dlm.types import Array, Canvas, Params


def propose(
  sampler: Sampler, params: Params, canvas: Canvas, rows_B: Array, key_B: Array
) -> Canvas:
  """In `rows`, drafts of the drafter behind the last settled token; open slots only.

  One forward over the row up to there and a mask in each slot to draft. It keeps no cache. Its
  candidates are drawn as the model's are, with the same noise.

  Args:
    params: the drafter's.
  """
  drafter, count = sampler.drafter, sampler.policy.proposals
  batch, slots = canvas.tokens_BxL.shape
  slot_BxL = jnp.broadcast_to(jnp.arange(slots)[None, :], (batch, slots))
  slot_BxA = canvas.start_B[:, None] + 1 + jnp.arange(count)[None, :]
  end_B = jnp.minimum(canvas.start_B + count + 1, canvas.length_B)
  masks_BxA = jnp.full_like(slot_BxA, drafter.mask_id)
  out = drafter.denoise(
    params,
    write(canvas, rows_B[:, None], slot_BxA, masks_BxA).tokens_BxL,
    slot_BxW=slot_BxL,
    mask=masks.within(drafter.sees(slot_BxL, slots, canvas.answer_B), end_B),
    ask_BxA=jnp.minimum(slot_BxA, slots - 1) - drafter.shift,
  )
  forbidden = (*sampler.spec().forbidden, drafter.mask_id)
  spec = dataclasses.replace(sampler.spec(), forbidden=forbidden)
  stats = score(
    out.head, spec, current_BxA=jnp.zeros_like(slot_BxA), key_B=key_B, slot_BxA=slot_BxA,
  )  # fmt: skip
  canvas = write(canvas, rows_B[:, None], slot_BxA, stats.token)
  return canvas.replace(
    drafts_B=canvas.drafts_B + rows_B,
    queries_B=canvas.queries_B + jnp.where(rows_B, end_B, 0),
  )


def advance(sampler: Sampler, state: LoopState, advance_B: Array, decides_B: Array) -> LoopState:
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
