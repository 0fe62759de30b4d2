"""Rows whose policy drafts: tokens stand on the canvas before they are settled."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.sampling import ends, guidance
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.types import Array, Canvas, Params, State


def propose(
  sampler: Sampler, params: Params, canvas: Canvas, rows_B: Array, key_B: Array
) -> Canvas:
  """In `rows`, drafts of the drafter behind the last settled token; open slots only.

  One forward over the row up to there and a mask in each slot to draft. It keeps no cache. Its
  candidates are drawn as the model's are, with the same noise.

  Args:
    params: the drafter's.
  """
  drafter, count = sampler.drafter, sampler.policy.length
  batch, slots = canvas.tokens_BxL.shape
  slot_BxL = jnp.broadcast_to(jnp.arange(slots)[None, :], (batch, slots))
  ahead_BxL = slot_BxL - canvas.start_B[:, None]
  draft_BxL = (ahead_BxL > 0) & (ahead_BxL <= count) & canvas.open_BxL & rows_B[:, None]
  end_B = jnp.minimum(canvas.start_B + count + 1, canvas.length_B)
  slot_BxA = canvas.start_B[:, None] + 1 + jnp.arange(count)[None, :]
  inside_BxA = jnp.minimum(slot_BxA, slots - 1)
  out = drafter.denoise(
    params,
    jnp.where(draft_BxL, drafter.mask_id, canvas.tokens_BxL),
    slot_BxW=slot_BxL,
    mask=masks.within(drafter.sees(slot_BxL, slots, canvas.answer_B), end_B),
    ask_BxA=inside_BxA - drafter.shift,
  )
  forbidden = (*sampler.spec().forbidden, drafter.mask_id)
  spec = dataclasses.replace(sampler.spec(), forbidden=forbidden)
  stats = score(
    out.head, spec, current_BxA=jnp.zeros_like(slot_BxA), key_B=key_B, slot_BxA=slot_BxA,
  )  # fmt: skip
  row_Bx1 = jnp.arange(batch)[:, None]
  drafted_BxA = draft_BxL[row_Bx1, inside_BxA] & (slot_BxA < slots)
  into_BxA = jnp.where(drafted_BxA, slot_BxA, slots)  # out of range: dropped
  return canvas.replace(
    tokens_BxL=canvas.tokens_BxL.at[row_Bx1, into_BxA].set(stats.token, mode="drop"),
    drafts_B=canvas.drafts_B + rows_B,
    queries_B=canvas.queries_B + jnp.where(rows_B, end_B, 0),
  )


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
