"""One forward of the loop: which slots, the model over them, and what is read off its logits."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from dlm import masks
from dlm.sampling import guidance, shadow, sliding
from dlm.sampling.canvas import at_slot, scope
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.sampling.state import Served, row_axes, where_rows
from dlm.types import Array, Canvas, KVCache, Mask, Params, Progress, TokenStats


@struct.dataclass
class Ask:
  """What a turn of the loop asks of the model."""

  canvas: Canvas
  at: Progress
  act_B: Array  # rows that take part
  full_B: Array  # of these, over the whole canvas; of the others over the row's window
  key_B: Array  # of the candidates' noise
  soft_BxAxD: Array | None  # given to the model beside the slots in scope that are not decided
  barred_B: Array | None  # bool: rows in which no candidate may be what the policy bars
  gather_BxAxJ: Array | None  # ids whose logits the policy needs
  drafting: Params | None = None  # the drafter's parameters, where it is told of this forward
  served: Served | None = None  # what rows have of their own


@struct.dataclass
class Scored:
  """What came of a forward."""

  stats: TokenStats  # of the slots in scope
  scored_BxA: Array  # bool: those the forward computed
  cache: KVCache | None
  queries_B: Array  # positions computed for each row


def forward(sampler: Sampler, params: Params, ask: Ask, cache: KVCache | None) -> Scored:
  """Runs the model over what is asked, and keeps the keys that the plan wants."""
  canvas, at, full_B = ask.canvas, ask.at, ask.full_B
  slots = canvas.tokens_BxL.shape[1]
  everywhere_BxL = jnp.ones_like(at.inside_BxL)

  def whole(cache: KVCache | None) -> tuple[TokenStats, KVCache | None]:
    emptied = cache
    if cache is not None:  # all keys are new: what the plan does not keep now is forgotten
      stale_B = guidance.twice(ask.act_B) if sampler.guidance else ask.act_B
      emptied = cache.replace(filled_BxS=cache.filled_BxS & ~stale_B[:, None])
    return _over(sampler, params, ask, emptied, everywhere_BxL, slots)

  if not sampler.plan.cached:
    shadows = sampler.block if sampler.policy.judges else 0
    stats, _ = whole(None)
    scored_BxA = _scored(sampler, ask, everywhere_BxL)
    return Scored(stats, scored_BxA, None, canvas.length_B + shadows)

  window_BxL = sampler.plan.window_BxL(at) & at.inside_BxL
  if sampler.anchored:
    window_BxL |= at.slot_L[None, :] == canvas.start_B[:, None] - 1
  size_B = window_BxL.sum(-1)
  ladder = _ladder(sampler, slots)
  rung_B = jnp.minimum(jnp.searchsorted(jnp.array(ladder), size_B), len(ladder) - 1)
  if not sampler.own_width:  # all share the widest
    rung_B = jnp.full_like(rung_B, jnp.where(ask.act_B & ~full_B, rung_B, 0).max())
  if sampler.refresh_rows:
    whole = functools.partial(_refresh, sampler, params, ask)
  runs = [(full_B, whole)]
  for i, width in enumerate(ladder):
    rows_B = ask.act_B & ~full_B & (rung_B == i)
    those = functools.partial(_over, sampler, params, ask.replace(act_B=rows_B))
    runs.append((rows_B, functools.partial(those, window_BxL=window_BxL, width=width)))
  stats, cache = in_turn(runs, cache)
  computed_BxL = jnp.where(full_B[:, None], everywhere_BxL, window_BxL)
  queries_B = jnp.where(full_B, canvas.length_B, size_B)
  return Scored(stats, _scored(sampler, ask, computed_BxL), cache, queries_B)


def _refresh(
  sampler: Sampler, params: Params, ask: Ask, cache: KVCache
) -> tuple[TokenStats, KVCache]:
  """The whole canvas of the few rows `full`, put together; their new keys replace all old ones."""
  batch, slots = ask.canvas.tokens_BxL.shape
  order_R = jnp.argsort(~ask.full_B, stable=True)[: sampler.refresh_rows]
  rows = jax.tree.map(lambda x: x[order_R], ask)
  rows = rows.replace(act_B=rows.full_B)
  everywhere_RxL = jnp.ones_like(rows.at.inside_BxL)
  empty = empty_cache(sampler, len(order_R), slots)
  stats, new = _over(sampler, params, rows, empty, everywhere_RxL, slots)
  into_R = jnp.where(rows.full_B, order_R, batch)  # out of range: dropped

  def put(axis: int, old: Array, own: Array) -> Array:
    return old.at[(slice(None),) * axis + (into_R,)].set(own, mode="drop")

  stats = jax.tree.map(lambda x: put(0, jnp.zeros((batch, *x.shape[1:]), x.dtype), x), stats)
  return stats, jax.tree.map(put, row_axes(cache), cache, new)


def empty_cache(sampler: Sampler, rows: int, slots: int) -> KVCache:
  """Of canvases of so many slots."""
  choice = sampler.plan.choice
  if sampler.kept is not None:
    return sampler.denoise.empty_cache(rows, slots, sampler.kept)
  if choice is None:
    return sampler.denoise.empty_cache(rows, slots)
  return sampler.denoise.empty_cache(rows, max(choice.kept(slots), 1)).replace(choice=choice)


def _whole_groups(sampler: Sampler, ask: Ask) -> Array:
  """Bool: slots that a cache in groups may be given: of a group all that it will hold, or none."""
  at, full_Bx1 = ask.at, ask.full_B[:, None]
  if sampler.plan.packs == "canvas":
    return jnp.broadcast_to(full_Bx1, at.inside_BxL.shape)
  new_BxL = full_Bx1 | (at.slot_L[None, :] >= at.cached_B[:, None])
  if sampler.commit == "free":  # any forward may turn out to be the block's last
    return new_BxL
  return new_BxL & (at.slot_L[None, :] < sampler.plan.cached_to_B(at)[:, None])


def in_turn(
  runs: list[tuple[Array, Callable[[KVCache | None], tuple[TokenStats, KVCache | None]]]],
  cache: KVCache | None,
) -> tuple[TokenStats, KVCache | None]:
  """`run(cache)` of every pair (rows, run) that has rows, and of each the statistics of its rows.

  By loops of one turn or none: XLA updates what a loop carries in place, where branches of a
  conditional would copy the cache at every forward (it stands several times in memory then).
  """
  # Jitted, a forward is traced once for its shapes and for its loop.
  runs = [(rows_B, jax.jit(run, inline=True)) for rows_B, run in runs]
  shapes, _ = jax.eval_shape(runs[0][1], cache)
  stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  for rows_B, run in runs:

    def turn(carry, rows_B=rows_B, run=run):
      _, stats, cache = carry
      own, cache = run(cache)
      return jnp.zeros((), bool), where_rows(rows_B, own, stats), cache

    carry = (rows_B.any(), stats, cache)
    _, stats, cache = jax.lax.while_loop(lambda carry: carry[0], turn, carry)
  return stats, cache


def window_slots(window_BxL: Array, width: int) -> Array:
  """[B, W]: the window's slots in order, then slots past the canvas's end."""
  order_BxW = jnp.argsort(~window_BxL, axis=1, stable=True)[:, :width].astype(jnp.int32)
  return jnp.where(at_slot(window_BxL, order_BxW), order_BxW, window_BxL.shape[1])


def window_places(window_BxL: Array, slot_BxA: Array, width: int) -> Array:
  """[B, A]: where these slots stand among `window_slots`, found by counting."""
  return jnp.clip(at_slot(jnp.cumsum(window_BxL, axis=1), slot_BxA) - 1, 0, width - 1)


def _ladder(sampler: Sampler, slots: int) -> tuple[int, ...]:
  """Window sizes; with shift each has room for the query before it."""
  extra = int(sampler.anchored)
  widths = {min(width + extra, slots) for width in sampler.plan.widths(sampler.block, slots)}
  return tuple(sorted(widths))


def _shift(sampler: Sampler, at: Progress) -> int | Array:
  """How far ahead of itself a query predicts, for each row [B, 1] where that differs."""
  return at.commits_B[:, None].astype(jnp.int32) if sampler.causal_context else sampler.shift


def _sees(sampler: Sampler, at: Progress, slot_BxW: Array, slots: int) -> Mask:
  """What each query sees, padding included."""
  mask = sampler.sees(slot_BxW, slots, at.answer_B, at.start_B)
  if sampler.causal_context:
    mask = where_rows(at.commits_B, sampler.sees.clean(slot_BxW, slots), mask)
  return mask


def _scored(sampler: Sampler, ask: Ask, computed_BxL: Array) -> Array:
  """Slots in scope whose predicting query was computed; slot 0 has only its own."""
  slot_BxA = scope(sampler, ask.canvas)
  asked_BxA = jnp.maximum(slot_BxA - _shift(sampler, ask.at), 0)
  return at_slot(computed_BxL, asked_BxA) & (slot_BxA < computed_BxL.shape[1])


def _over(
  sampler: Sampler,
  params: Params,
  ask: Ask,
  cache: KVCache | None,
  window_BxL: Array,
  width: int,
) -> tuple[TokenStats, KVCache | None]:
  """One forward over the window's slots, in order, padded with slots past the canvas's end.

  The order is that of the canvas, unless the policy slides.
  """
  canvas, at, slots = ask.canvas, ask.at, window_BxL.shape[1]
  slot_BxA = scope(sampler, canvas)
  slot_BxW = window_slots(window_BxL, width)
  # Query w predicts slot + shift.
  shift = _shift(sampler, at)
  ask_BxA = window_places(window_BxL, jnp.clip(slot_BxA - shift, 0, slots - 1), width)
  place_BxW, seldom = slot_BxW, {}  # a denoiser that is never given these need not know the words
  if sampler.policy.slides:
    turn_BxW = sliding.known_first(at, slot_BxW)
    slot_BxW = jnp.take_along_axis(slot_BxW, turn_BxW, axis=1)
    ask_BxA = jnp.take_along_axis(jnp.argsort(turn_BxW, axis=1), ask_BxA, axis=1)
    seldom["place_BxW"] = place_BxW
  write_BxW, plan = None, sampler.plan
  grouped = sampler.kept is not None and sampler.kept.group > 1
  at_refresh = plan.choice is not None or (grouped and plan.packs == "canvas")
  if cache is not None and (width == slots or not at_refresh):
    keep_BxL = plan.keep_BxL(at) & at.inside_BxL & ask.act_B[:, None]
    if grouped:
      keep_BxL &= _whole_groups(sampler, ask)
    write_BxW = at_slot(keep_BxL, slot_BxW) & (slot_BxW < slots)
  time_BxW = None
  if sampler.clock is not None:
    some_slot_BxW = jnp.minimum(slot_BxW, slots - 1)
    time_BxW = sampler.clock(at.masked_BxL, canvas.open_BxL, at.inside_BxL, some_slot_BxW)
    if sampler.policy.levels:
      level_B = sampler.policy.level(at.step_B)
      time_BxW = jnp.broadcast_to(level_B[:, None], slot_BxW.shape)
  told = sampler.drafter is not None and sampler.drafter.taps
  if told:
    seldom["taps"] = told
  if isinstance(sampler.sees, masks.Canvas):  # its models tell text from noise
    time_BxW = (slot_BxW >= at.start_B[:, None]).astype(jnp.float32)
  if ask.soft_BxAxD is not None:
    waits_BxL = at.masked_BxL
    if sampler.policy.renoises:  # all of its block does
      waits_BxL = at.active_BxL & canvas.open_BxL
    offset_BxW = slot_BxW - slot_BxA[:, :1]
    carries_BxW = at_slot(waits_BxL, slot_BxW) & (offset_BxW >= 0)
    soft_BxWxD = at_slot(ask.soft_BxAxD, jnp.maximum(offset_BxW, 0))
    seldom["soft_BxWxD"] = jnp.where(carries_BxW[:, :, None], soft_BxWxD, 0)
  # As few rows as can be meet the vocabulary: those of the queries, or the active block's.
  by_query = sampler.scope == "canvas" or width < slot_BxA.shape[1]
  target_BxA = jnp.minimum(slot_BxW + shift, slots - 1) if by_query else slot_BxA
  gather_BxAxJ = ask.gather_BxAxJ
  if by_query and gather_BxAxJ is not None:
    gather_BxAxJ = at_slot(gather_BxAxJ, jnp.maximum(target_BxA - slot_BxA[:, :1], 0))
  denoise = guidance.denoise
  if sampler.policy.judges:
    rows = {"start_B": canvas.start_B, "length_B": canvas.length_B}
    denoise = functools.partial(shadow.denoise, **rows)
  out = denoise(
    sampler,
    params,
    at_slot(canvas.tokens_BxL, slot_BxW),
    at_slot(canvas.open_BxL, slot_BxW),
    slot_BxW=slot_BxW,
    mask=masks.within(_sees(sampler, at, place_BxW, slots), canvas.length_B),
    time_BxW=time_BxW,
    cache=cache,
    write_BxW=write_BxW,
    ask_BxA=None if by_query else ask_BxA,
    **seldom,
  )
  kept = out.cache
  if told:
    drafts = sampler.drafter.denoise.remember(
      ask.drafting,
      out.features_BxWxF[: len(slot_BxW)],  # with guidance the twins come behind
      slot_BxW=slot_BxW,
      write_BxW=write_BxW,
      cache=kept.drafts,
    )
    kept = kept.replace(drafts=drafts)
  stats = score(
    out.head,
    sampler.spec(),
    temperature_B=sampler.policy.temperature(at.step_B),
    bars=(sampler.policy.bars, ask.barred_B),
    current_BxA=at_slot(canvas.tokens_BxL, target_BxA),
    key_B=ask.key_B,
    slot_BxA=target_BxA,
    gather_BxAxJ=gather_BxAxJ,
    served=ask.served,
  )
  if by_query:
    stats = jax.tree.map(lambda x: at_slot(x, ask_BxA), stats)
  return stats, kept
