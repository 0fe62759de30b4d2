"""Rows whose policy drafts: tokens stand on the canvas before they are settled."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from dlm import masks
from dlm.sampling import ends, guidance
from dlm.sampling.canvas import at_slot, write
from dlm.sampling.forward import Run, Window, in_turn
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import confidence, score
from dlm.sampling.state import LoopState
from dlm.types import Array, Canvas, KVCache, LogitHead, Params, TokenStats

Over = Callable[[KVCache], tuple[LogitHead, KVCache]]  # a forward of the drafter


def propose(
  sampler: Sampler, params: tuple[Params, Params], state: LoopState, rows_B: Array, key_B: Array
) -> LoopState:
  """In `rows`, drafts of the drafter behind the last settled token; open slots only.

  Its candidates are drawn as the model's are, with the same noise, or are its likeliest tokens
  where the policy wants these. What it keeps of the settled text is `cache.drafts`.

  Args:
    params: the model's and the drafter's.
  """
  drafter, count, canvas = sampler.drafter, sampler.policy.proposals, state.canvas
  slot_BxA = canvas.start_B[:, None] + 1 + jnp.arange(count)[None, :]
  masks_BxA = jnp.full_like(slot_BxA, drafter.mask_id)
  shown_BxL = write(canvas, rows_B[:, None], slot_BxA, masks_BxA).tokens_BxL
  if drafter.taps:
    runs, size_B = _over_block(sampler, params, state, rows_B, shown_BxL)
  else:
    runs, size_B = _over_text(sampler, params[1], state, rows_B, shown_BxL)
  forbidden = (*sampler.spec().forbidden, drafter.mask_id)
  spec = dataclasses.replace(sampler.spec(), forbidden=forbidden)
  if sampler.policy.best_drafts:
    spec = dataclasses.replace(spec, temperature=0.0)

  def scored(over: Over, left_B: Array, cache: KVCache) -> tuple[TokenStats, KVCache, Array]:
    head, cache = over(cache)
    return (
      score(head, spec, current_BxA=jnp.zeros_like(slot_BxA), key_B=key_B, slot_BxA=slot_BxA),
      cache,
      left_B,
    )

  runs = [
    Run(of_B, len(of_B) * width, functools.partial(scored, over)) for of_B, width, over in runs
  ]
  stats, kept, computed_B = in_turn(runs, state.cache.drafts)
  canvas = write(canvas, rows_B[:, None], slot_BxA, stats.token)
  return state.replace(
    canvas=canvas.replace(
      drafts_B=canvas.drafts_B + rows_B,
      queries_B=canvas.queries_B + jnp.where(rows_B, size_B, 0),
      computed_B=canvas.computed_B + computed_B,
    ),
    cache=state.cache.replace(drafts=kept),
  )


def _over_block(
  sampler: Sampler, params: tuple[Params, Params], state: LoopState, rows_B: Array, shown_BxL: Array
) -> tuple[list[tuple[Array, int, Over]], Array]:
  """The last settled token and a mask for each draft, also where the canvas has ended by then.

  Of the text before, `forward` remembers what the model's layers told.
  """
  drafter, count, canvas = sampler.drafter, sampler.policy.proposals, state.canvas
  slot_BxW = canvas.start_B[:, None] + jnp.arange(count + 1)[None, :]
  inside_BxW = slot_BxW < canvas.length_B[:, None]
  tokens_BxW = jnp.where(inside_BxW, at_slot(shown_BxL, slot_BxW), drafter.mask_id)
  seen = drafter.sees(slot_BxW, shown_BxL.shape[1] + count + 1)

  def run(cache: KVCache) -> tuple[LogitHead, KVCache]:
    out = drafter.denoise(
      params[1],
      params[0],
      tokens_BxW,
      slot_BxW=slot_BxW,
      key_BxW=slot_BxW,
      mask=seen,
      context=(cache.k_YxBxSxKxH, cache.v_YxBxSxKxH),
      live_BxS=cache.filled_BxS,
    )
    return out.head.replace(hidden_BxAxD=out.head.hidden_BxAxD[:, 1:]), cache

  return [(rows_B, count + 1, run)], jnp.full_like(canvas.start_B, count + 1)


def _over_text(
  sampler: Sampler, params: Params, state: LoopState, rows_B: Array, shown_BxL: Array
) -> tuple[list[tuple[Array, int, Over]], Array]:
  """What of the text is not cached, and a mask for each draft; at first the whole canvas.

  Kept are the keys of settled tokens that see no more than settled ones: the drafts are then those
  of a drafter without a cache. One that sees all of its row never has such; of that one all settled
  tokens are kept, as they saw the row when they were new.
  """
  drafter, count, canvas = sampler.drafter, sampler.policy.proposals, state.canvas
  slots = shown_BxL.shape[1]
  slot_BxL = jnp.broadcast_to(jnp.arange(slots), shown_BxL.shape)
  slot_BxA = canvas.start_B[:, None] + 1 + jnp.arange(count)[None, :]
  end_B = jnp.minimum(canvas.start_B + count + 1, canvas.length_B)
  settled_BxL = slot_BxL <= canvas.start_B[:, None]
  if not isinstance(drafter.sees, masks.Full):
    sees = drafter.sees(slot_BxL, slots, canvas.answer_B)
    settled_BxL &= sees.hi_BxWxR.max(-1) <= canvas.start_B[:, None] + 1

  def over(cache: KVCache, of_B: Array, window_BxL: Array, width: int) -> tuple[LogitHead, KVCache]:
    window = Window.of(window_BxL)
    slot_BxW = window.slot_BxL[:, :width]
    ask_BxA = window.places(jnp.minimum(slot_BxA, slots - 1) - drafter.shift, width)
    out = drafter.denoise(
      params,
      at_slot(shown_BxL, slot_BxW),
      slot_BxW=slot_BxW,
      mask=masks.within(drafter.sees(slot_BxW, slots, canvas.answer_B), end_B),
      cache=cache,
      write_BxW=at_slot(settled_BxL & of_B[:, None], slot_BxW) & (slot_BxW < slots),
      ask_BxA=ask_BxA,
    )
    return out.head, out.cache

  new_BxL = ~state.cache.drafts.filled_BxS & (slot_BxL < end_B[:, None])
  # The tokens of one turn, the drafts, and what is left of a block that is not finished.
  width = min(2 * count + getattr(drafter.sees, "block", 1), slots)
  size_B = new_BxL.sum(-1)
  much_B, everything_BxL = size_B > width, jnp.ones_like(new_BxL)
  runs = [
    (of_B, width, functools.partial(over, of_B=of_B, window_BxL=window_BxL, width=width))
    for of_B, window_BxL, width in (
      (rows_B & much_B, everything_BxL, slots),
      (rows_B & ~much_B, new_BxL, width),
    )
  ]
  return runs, jnp.where(much_B, end_B, size_B)


def propose_itself(
  sampler: Sampler, params: Params, state: LoopState, rows_B: Array, key_B: Array
) -> Canvas:
  """In `rows`, drafts of the model itself behind the last settled token (Nemotron-Labs-Diffusion).

  One forward over that token and a mask in each slot to draft: they see each other and the cached
  text, and leave no keys. A mask predicts its own slot, with the noise by which the check draws it.
  Drafts that are no surer than the policy's `least_sure` stay masks.
  """
  canvas, policy = state.canvas, sampler.policy
  slots = canvas.tokens_BxL.shape[1]
  slot_BxW = canvas.start_B[:, None] + jnp.arange(1 + policy.own_drafts)[None, :]
  slot_BxA = slot_BxW[:, 1:]
  masks_BxA = jnp.full_like(slot_BxA, sampler.mask_id)
  canvas = write(canvas, rows_B[:, None], slot_BxA, masks_BxA)
  end_B = jnp.minimum(canvas.start_B + slot_BxW.shape[1], canvas.length_B)

  def run(left_B: Array, _: None) -> tuple[TokenStats, None, Array]:
    out = (sampler.adapted or sampler.denoise)(
      params,
      at_slot(canvas.tokens_BxL, slot_BxW),
      slot_BxW=jnp.minimum(slot_BxW, slots),
      mask=masks.within(masks.Full()(slot_BxW, slots), end_B),
      cache=state.cache,
      ask_BxA=jnp.broadcast_to(jnp.arange(1, slot_BxW.shape[1]), slot_BxA.shape),
    )
    return (
      score(
        out.head,
        sampler.spec(),
        current_BxA=jnp.zeros_like(slot_BxA),
        key_B=key_B,
        slot_BxA=slot_BxA,
      ),
      None,
      left_B,
    )

  stats, _, computed_B = in_turn([Run(rows_B, slot_BxW.size, run)], None)
  sure_BxA = confidence(stats) > policy.least_sure
  canvas = write(canvas, rows_B[:, None] & sure_BxA, slot_BxA, stats.token)
  return canvas.replace(
    drafts_B=canvas.drafts_B + rows_B,
    queries_B=canvas.queries_B + jnp.where(rows_B, end_B - canvas.start_B, 0),
    computed_B=canvas.computed_B + computed_B,
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
  cache, drafts = state.cache, state.cache.drafts
  if drafts is not None:
    drafts = drafts.replace(filled_BxS=drafts.filled_BxS & (slot_L[None, :] < start_B[:, None]))
  return state.replace(
    canvas=canvas.replace(
      start_B=start_B,
      done_B=done_B,
      tokens_BxL=jnp.where(unsettled_BxL, sampler.mask_id, canvas.tokens_BxL),
    ),
    cache=cache.replace(filled_BxS=cache.filled_BxS & cached_BxS, drafts=drafts),
    cached_B=start_B,
  )
