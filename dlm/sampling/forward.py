"""One forward of the loop: which slots, the model over them, and what is read off its logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from dlm import masks
from dlm.sampling import guidance, shadow, sizes, sliding
from dlm.sampling.canvas import at_slot, scope
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.sampling.state import Served, row_axes, where_rows
from dlm.types import Array, Canvas, KVCache, Mask, Params, Progress, TokenStats

MOST_OVER_USED = 1.1  # a forward's positions over those of its rows' own widths, else they wait
WAITING = 6  # a turn that a row has waited counts as so many masks that it has left
LONGEST_WAIT = 12  # turns after which a row is given a forward, full or not


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


class Run(NamedTuple):
  """Forwards that rows of a batch have in common, one after the other until all have had theirs."""

  rows_B: Array
  places: int  # query positions that one of them computes
  over: Callable[
    [Array, Any], tuple[Any, Any, Array]
  ]  # (rows left, cache) -> (of them, cache, whom)


@struct.dataclass
class Scored:
  """What came of a forward."""

  stats: TokenStats  # of the slots in scope
  scored_BxA: Array  # bool: those the forward computed
  cache: KVCache | None
  queries_B: Array  # positions that each row needed
  computed_B: Array  # float32: and those that were computed, padding and idle rows shared out


@struct.dataclass
class Window:
  """Slots of each row in the order of the canvas: laid out once, for forwards of any width."""

  slot_BxL: Array  # those in the window, then slots past the canvas's end
  count_BxL: Array  # of those up to each slot, itself included

  @classmethod
  def of(cls, window_BxL: Array) -> "Window":
    order_BxL = jnp.argsort(~window_BxL, axis=1, stable=True).astype(jnp.int32)
    slot_BxL = jnp.where(at_slot(window_BxL, order_BxL), order_BxL, window_BxL.shape[1])
    return cls(slot_BxL, jnp.cumsum(window_BxL, axis=1))

  def places(self, slot_BxA: Array, width: int) -> Array:
    """[B, A]: where these slots stand among the first `width` of the window."""
    return jnp.clip(at_slot(self.count_BxL, slot_BxA) - 1, 0, width - 1)


class Kind(NamedTuple):
  """Rows over their whole canvas, or rows over their windows."""

  whole: bool
  rows_B: Array
  window_BxL: Array  # slots that each computes
  widths: tuple[int, ...]  # to which these are padded, ascending


class Share(NamedTuple):
  """Forwards of one kind and width, and the rows that they are for."""

  whole: bool
  width: int
  rows: int  # that one of them takes
  own_B: Array


class Turn(NamedTuple):
  """The forwards of a turn, and the rows that take part in them."""

  kinds: list[Kind]
  shares: list[Share]
  act_B: Array


def forward(
  sampler: Sampler, params: Params, ask: Ask, turn: Turn, cache: KVCache | None
) -> Scored:
  """Runs the model over what is asked, and keeps the keys that the plan wants."""
  canvas, full_B, kinds = ask.canvas, ask.full_B, turn.kinds
  shadows = sampler.block if sampler.policy.judges else 0
  runs, queries_B = [], canvas.length_B + shadows
  windows = {kind.whole: Window.of(kind.window_BxL) for kind in kinds}
  for whole, width, rows, own_B in turn.shares:
    run = functools.partial(_some, sampler, params, ask, windows[whole], whole, width, rows)
    runs.append(Run(own_B, rows * (width + shadows), run))
  stats, cache, computed_B = in_turn(runs, cache)
  computed_BxL, window_BxL = kinds[0].window_BxL, kinds[-1].window_BxL
  computed_BxL = jnp.where(full_B[:, None], computed_BxL, window_BxL)
  queries_B = jnp.where(full_B, queries_B, window_BxL.sum(-1))
  return Scored(stats, _scored(sampler, ask, computed_BxL), cache, queries_B, computed_B)


def _kinds(
  sampler: Sampler, canvas: Canvas, at: Progress, act_B: Array, full_B: Array
) -> list[Kind]:
  plan, slots, kinds = sampler.plan, canvas.tokens_BxL.shape[1], []
  if plan.cached:
    window_BxL = plan.window_BxL(at) & at.inside_BxL
    if sampler.anchored:
      window_BxL |= at.slot_L[None, :] == canvas.start_B[:, None] - 1
    if plan.refreshes and plan.choice is None:  # a window over all, and nothing to read: the same
      full_B |= (window_BxL == at.inside_BxL).all(-1) & ~at.filled_BxL.any(-1)
    kinds.append(Kind(False, act_B & ~full_B, window_BxL, _ladder(sampler, slots)))
  if plan.refreshes:
    widths = _whole_widths(sampler, slots)
    whole_BxL = at.inside_BxL if len(widths) > 1 else jnp.ones_like(at.inside_BxL)
    kinds.insert(0, Kind(True, act_B & full_B, whole_BxL, widths))
  return kinds


def share_out(
  sampler: Sampler,
  canvas: Canvas,
  at: Progress,
  act_B: Array,
  full_B: Array,
  waited_B: Array | None,
) -> Turn:
  """Shares the rows that may act out to forwards, of each kind the widest first.

  A row goes where its window fits; but a forward that has places left takes rows along that need
  less, unless they shall be computed at their own width. With `Sampler.positions` a forward to
  which more than a tenth would be added for nothing is left out if there are others, and if there
  are none the fullest runs: rows wait until more need the same, but not for ever. First come those
  that have most to write, or have waited: so that all are done at about the same time, and the last
  are not alone.

  Args:
    waited_B: turns that rows have waited; None: none may wait.
  """
  patient = bool(sampler.positions and not sampler.refresh_rows) and waited_B is not None
  kinds = _kinds(sampler, canvas, at, act_B, full_B)
  batch, urgency_B, late_B = len(act_B), jnp.zeros_like(canvas.start_B), jnp.zeros_like(act_B)
  if patient:
    late_B = waited_B >= LONGEST_WAIT
    left_B = at.masked_BxL.sum(-1) + WAITING * waited_B
    urgency_B = batch - 1 - _rank(left_B, jnp.ones_like(act_B))
  shapes, runs = [], []
  for kind in kinds:
    widths_N = jnp.array(kind.widths, jnp.int32)
    rung_B = (kind.window_BxL.sum(-1)[:, None] > widths_N[None, :-1]).sum(-1)
    for rung, width in reversed(list(enumerate(kind.widths))):
      rows = sampler.rows_together(width, batch, kind.whole)
      shapes.append((kind.whole, width, rows))
      runs.append((kind.rows_B, rung_B, widths_N[rung_B], rung, rows, rows * width))

  def take(taken_B: Array, run: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    rows_B, rung_B, width_B, rung, rows, places = run
    fits_B = rung_B == rung if sampler.own_width else rung_B <= rung
    left_B = rows_B & ~taken_B & fits_B
    own_B = left_B & (rung_B == rung)
    count = own_B.sum()
    rank_B = _rank(rung_B * batch + urgency_B, left_B)
    full_B = left_B & (rank_B < count // rows * rows)
    rest_B = left_B & (rank_B < -(-count // rows) * rows) & ~full_B
    used = jnp.where(rest_B, width_B, 0).sum() / places
    goes = (used >= 1 / MOST_OVER_USED) | (rest_B & own_B & late_B).any() | (not patient)
    takes_B = full_B | (rest_B & goes)
    return taken_B | takes_B, (takes_B, rest_B & ~goes, used)

  # A scan: so few lines are compiled once, not for each width.
  stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(each) for each in x]), *runs)
  taken_B, (own_NxB, waits_NxB, used_N) = jax.lax.scan(take, jnp.zeros_like(act_B), stacked)
  if patient:
    fullest = jnp.argmax(jnp.where(waits_NxB.any(1), used_N, 0))
    alone_NxB = waits_NxB & (jnp.arange(len(used_N)) == fullest)[:, None]
    own_NxB = jnp.where(taken_B.any(), own_NxB, alone_NxB)
  shares = [Share(*shape, own_B) for shape, own_B in zip(shapes, own_NxB, strict=True)]
  return Turn(kinds, shares, own_NxB.any(0))


def _rank(score_B: Array, eligible_B: Array) -> Array:
  """As `select.rank`, by comparing every two rows: they are few, and a sort is long to compile."""
  row_B = jnp.arange(len(score_B))
  other, own = score_B[None, :], score_B[:, None]
  before_BxB = (other > own) | ((other == own) & (row_B[None, :] < row_B[:, None]))
  return (eligible_B[None, :] & before_BxB).sum(-1)


def _some(
  sampler: Sampler,
  params: Params,
  ask: Ask,
  window: Window,
  whole: bool,
  width: int,
  rows: int,
  left_B: Array,
  cache: KVCache | None,
) -> tuple[TokenStats, KVCache | None, Array]:
  """One forward over the first `rows` of the rows that are left."""
  batch = len(left_B)
  if rows == batch:
    ask = ask.replace(act_B=left_B)
    return *_over(sampler, params, ask, cache, window, width, whole), left_B
  order_R = jnp.argsort(~left_B, stable=True)[:rows]
  own, window = jax.tree.map(lambda x: x[order_R], (ask.replace(drafting=None), window))
  own = own.replace(act_B=left_B[order_R], drafting=ask.drafting)
  from_R, into_R = order_R, jnp.where(own.act_B, order_R, 2 * batch)  # out of range: dropped

  def put(axis: int, every: Array, some: Array, into_R: Array = into_R) -> Array:
    return every.at[(slice(None),) * axis + (into_R,)].set(some, mode="drop")

  held = None
  if cache is not None:
    if sampler.guidance:  # the twins
      from_R, twice_R = (jnp.concatenate([x, x + batch]) for x in (from_R, into_R))
    axes = row_axes(cache)
    held = jax.tree.map(lambda axis, x: jnp.take(x, from_R, axis), axes, cache)
  stats, held = _over(sampler, params, own, held, window, width, whole)
  if cache is not None:
    twice_R = twice_R if sampler.guidance else into_R
    cache = jax.tree.map(functools.partial(put, into_R=twice_R), axes, cache, held)
  stats = jax.tree.map(lambda x: put(0, jnp.zeros((batch, *x.shape[1:]), x.dtype), x), stats)
  return stats, cache, put(0, jnp.zeros_like(left_B), own.act_B)


def empty_cache(sampler: Sampler, rows: int, slots: int) -> KVCache:
  """Of canvases of so many slots."""
  choice = sampler.plan.choice
  if sampler.kept is not None:
    return sampler.denoise.empty_cache(rows, slots, sampler.kept)
  if choice is None:
    return sampler.denoise.empty_cache(rows, slots)
  return sampler.denoise.empty_cache(rows, max(choice.kept(slots), 1)).replace(choice=choice)


def _for_groups(sampler: Sampler, ask: Ask) -> Array:
  """Bool: slots that a cache in groups may be given: none that it holds for good.

  Without a residual they are all that a group will hold, or none of it.
  """
  at, full_Bx1 = ask.at, ask.full_B[:, None]
  if sampler.plan.packs == "canvas":
    return jnp.broadcast_to(full_Bx1, at.inside_BxL.shape)
  new_BxL = full_Bx1 | (at.slot_L[None, :] >= at.cached_B[:, None])
  end_B = sampler.plan.cached_to_B(at) + sampler.active_kept * sampler.block
  return new_BxL & (at.slot_L[None, :] < end_B[:, None])


def in_turn(runs: list[Run], cache: KVCache | None) -> tuple[TokenStats, KVCache | None, Array]:
  """All rows of every run: their statistics, the cache, and the positions computed for each.

  By loops: XLA updates what a loop carries in place, where branches of a conditional would copy the
  cache at every forward (it stands several times in memory then).
  """
  # Jitted, a forward is traced once for its shapes and for its loop.
  runs = [run._replace(over=jax.jit(run.over, inline=True)) for run in runs]
  shapes, *_ = jax.eval_shape(runs[0].over, runs[0].rows_B, cache)
  stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  computed_B = jnp.zeros(runs[0].rows_B.shape, jnp.float32)
  for run in runs:

    def turn(carry, run=run):
      left_B, stats, cache, computed_B = carry
      own, cache, taken_B = run.over(left_B, cache)
      computed_B += jnp.where(taken_B, run.places / taken_B.sum(), 0)
      return left_B & ~taken_B, where_rows(taken_B, own, stats), cache, computed_B

    carry = (run.rows_B, stats, cache, computed_B)
    _, stats, cache, computed_B = jax.lax.while_loop(lambda carry: carry[0].any(), turn, carry)
  return stats, cache, computed_B


def _whole_widths(sampler: Sampler, slots: int) -> tuple[int, ...]:
  """Of forwards over whole rows: rows are longer than half of their canvas (`sizes.canvas`)."""
  if not sampler.positions:
    return (slots,)
  choice = sampler.plan.choice  # its keys are taken from the forward, which must have as many
  return sizes.widths(slots, max(slots // 2 + 1, choice.kept(slots) if choice else 0))


def _ladder(sampler: Sampler, slots: int) -> tuple[int, ...]:
  """Window sizes; with shift each has room for the query before it."""
  extra = int(sampler.anchored)
  widths = sampler.plan.widths(sampler.block, slots)
  if not sampler.positions:  # all rows together, as wide as the widest
    widths = sizes.fewer(widths)
  return tuple(sorted({min(width + extra, slots) for width in widths}))


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
  window: Window,
  width: int,
  whole: bool,
) -> tuple[TokenStats, KVCache | None]:
  """One forward over the window's slots, in order, padded with slots past the canvas's end.

  The order is that of the canvas, unless the policy slides. `whole`: they are all that the rows
  have, so all keys are new, and what the plan does not keep now is forgotten.
  """
  canvas, at, slots = ask.canvas, ask.at, ask.canvas.tokens_BxL.shape[1]
  if whole and cache is not None:
    stale_B = guidance.twice(ask.act_B) if sampler.guidance else ask.act_B
    filled_BxS = cache.filled_BxS & ~stale_B[:, None]
    cache = cache.replace(filled_BxS=filled_BxS, read=False)
    if cache.coded_B is not None:
      cache = cache.replace(coded_B=jnp.where(stale_B, 0, cache.coded_B))
  slot_BxA = scope(sampler, canvas)
  slot_BxW = window.slot_BxL[:, :width]
  # Query w predicts slot + shift.
  shift = _shift(sampler, at)
  ask_BxA = window.places(jnp.clip(slot_BxA - shift, 0, slots - 1), width)
  place_BxW, seldom = slot_BxW, {}  # a denoiser that is never given these need not know the words
  if sampler.policy.slides:
    turn_BxW = sliding.known_first(at, slot_BxW)
    slot_BxW = jnp.take_along_axis(slot_BxW, turn_BxW, axis=1)
    ask_BxA = jnp.take_along_axis(jnp.argsort(turn_BxW, axis=1), ask_BxA, axis=1)
    seldom["place_BxW"] = place_BxW
  write_BxW, plan = None, sampler.plan
  grouped = sampler.kept is not None and sampler.kept.group > 1
  at_refresh = plan.choice is not None or (grouped and plan.packs == "canvas")
  if cache is not None and (whole or not at_refresh):
    keep_BxL = plan.keep_BxL(at) & at.inside_BxL & ask.act_B[:, None]
    if grouped:
      keep_BxL &= _for_groups(sampler, ask)
    write_BxW = at_slot(keep_BxL, slot_BxW) & (slot_BxW < slots)
    if cache.coded_B is not None:
      seldom["final_B"] = jnp.where(ask.act_B, plan.cached_to_B(at), 0)
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
  if kept is not None:
    kept = kept.replace(read=True)
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
