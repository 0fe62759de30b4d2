"""THE sampling loop: plan -> denoise -> score -> decide -> commit, until every row is done.

Each row is a small state machine with its own block pointer, so rows in different blocks and phases
share one compiled step, and a row sampled alone equals the row in a batch: to the bit where the
number of rows, the canvas and the widths of windows are equal, else unless two candidates lie
within rounding:

  fill     of plans that cache the prompt in parts: forwards that cache the next one and decide
           nothing, until a block or less is left
  pending  clean text before the active block is not cached: the prompt, or the block just finished.
           commit="separate": the next forward caches it and decides nothing, but for the first
           token of the active block where the clean token before it predicts that (shift, or a
           causal context, where this forward reads causally and no other does).
           "fused": it rides in the active block's first forward, one forward fewer for the same
           tokens. "free": as fused, and a block whose last forward changed nothing is cached by it
  denoise  forwards over the active block; the policy writes tokens after each
  done     no masked slot is left, a stop id and all before it is written, or max_forwards are spent

A policy may work ahead of its active block (`reach`), and one that drafts says how far its tokens
are settled (`Decision.advance_B`): the rest is given back to the next forward. Of one that slides
the block begins at the first masked slot (`dlm.sampling.sliding`).

In one turn of the loop all rows run the same kind of forward; a row that needs another kind waits.
With `Sampler.positions` the kinds run beside each other, each over the rows that need it, and rows
wait only where a forward would have places left (`dlm.sampling.forward.share_out`). With
`Sampler.refresh_rows` none waits but for the whole canvas, which few rows a turn compute.
"""

import jax
import jax.numpy as jnp

from dlm.sampling import drafts, ends, held, renoising, select, shifts, sliding
from dlm.sampling.canvas import at_slot, in_block, masked, scope, write
from dlm.sampling.forward import Ask, empty_cache, forward, share_out
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import WAITS, Held, LoopState, Served, where_rows
from dlm.types import FORWARD_KINDS, Array, Canvas, Decision, KVCache, Params, Progress, State, View


def run(sampler: Sampler, params: Params, canvas: Canvas) -> Canvas:
  """Denoises every row."""
  state = jax.lax.while_loop(
    lambda state: jnp.any(~state.canvas.done_B),
    lambda state: step(sampler, params, state),
    start(sampler, canvas),
  )
  return state.canvas


def turns(
  sampler: Sampler, params: Params, state: LoopState, most: Array, refreshes: Array
) -> LoopState:
  """So many turns of `run`, fewer where all rows are done before: between them rows may change.

  With `Sampler.refresh_rows` some rows compute the whole canvas in `refreshes` of them at most.
  """

  def whole(state: LoopState) -> Array:
    return state.canvas.forwards_Bx3[:, 0].sum()

  def turn(carry: tuple[Array, Array, LoopState]) -> tuple[Array, Array, LoopState]:
    turn, left, state = carry
    after = step(sampler, params, state, left > 0)
    return turn + 1, left - (whole(after) > whole(state)), after

  *_, state = jax.lax.while_loop(
    lambda carry: (carry[0] < most) & jnp.any(~carry[2].canvas.done_B),
    turn,
    (jnp.zeros((), jnp.int32), refreshes, state),
  )
  return state


def start(sampler: Sampler, canvas: Canvas, served: Served | None = None) -> LoopState:
  """The state before the first forward. `served`: settings of rows that differ in them."""
  batch, slots = canvas.tokens_BxL.shape
  rows, cache = 2 * batch if sampler.guidance else batch, None
  if sampler.plan.cached:
    cache = empty_cache(sampler, rows, slots)
  if sampler.drafter is not None:
    cache = cache.replace(drafts=sampler.drafter.denoise.empty_cache(batch, slots))
  return LoopState(
    canvas=renoising.begin(sampler, canvas, ~canvas.done_B),
    cache=cache,
    policy=sampler.policy.enter(in_block(sampler, canvas), None),
    step_B=jnp.zeros(batch, jnp.int32),
    cached_B=jnp.zeros(batch, jnp.int32),
    renewed_B=jnp.zeros(batch, bool),
    soft_BxAxD=_no_soft(sampler, canvas) if sampler.spec().soft else None,
    served=served,
    waited_B=jnp.zeros(batch, jnp.int32) if sampler.refresh_rows or sampler.positions else None,
  )


def step(
  sampler: Sampler, params: Params, state: LoopState, may_refresh: bool | Array = True
) -> LoopState:
  """One forward of the model and what follows from it.

  Args:
    may_refresh: with `Sampler.refresh_rows`: False keeps rows that need the whole canvas waiting.
  """
  canvas = state.canvas
  # 1. plan: which kind of forward, and which rows take part in it.
  at = progress(sampler, state)
  full_B, act_B = _phases(sampler, state, at, may_refresh)
  separate = sampler.plan.commits and sampler.commit == "separate"
  commits_B = act_B & (state.cached_B < canvas.start_B) & separate
  fills_B = sampler.plan.fills_B(at)
  if fills_B is not None:
    commits_B |= act_B & fills_B
  at, waited_B = at.replace(commits_B=commits_B), state.waited_B
  turn = share_out(sampler, canvas, at, act_B, full_B, waited_B)
  act_B, full_B, commits_B = turn.act_B, full_B & turn.act_B, commits_B & turn.act_B
  at = at.replace(commits_B=commits_B)
  if waited_B is not None:
    waited_B = jnp.where(canvas.done_B | act_B, 0, waited_B + 1)

  # 2. denoise and score.
  key_noise_B, key_policy_B = _row_keys(canvas, sampler.policy.coupled)
  drafting = None
  if sampler.drafter is not None:
    state = drafts.propose(sampler, params, state, act_B & ~full_B, key_noise_B)
    canvas, (params, drafting) = state.canvas, params
  if sampler.policy.own_drafts:
    canvas = drafts.propose_itself(sampler, params, state, act_B & ~full_B, key_noise_B)
    state = state.replace(canvas=canvas)
  ids_BxAxJ = sampler.policy.gather_ids(state.policy)
  barred_B = sampler.policy.barred(state.policy)
  ask = Ask(
    canvas, at, act_B, full_B, key_noise_B, state.soft_BxAxD, barred_B, ids_BxAxJ, drafting,
    state.served,
  )  # fmt: skip
  seen = forward(sampler, params, ask, turn, state.cache)

  # 3. decide.
  view = _view(sampler, state, at, seen.stats, seen.scored_BxA)
  decision, policy = sampler.policy.decide(view, state.policy, key_policy_B)
  alone_B = jnp.zeros_like(act_B)
  if sampler.first_alone:
    alone_B = act_B & (full_B | commits_B)
    decision = _first_alone(view, decision, alone_B)
    commits_B &= ~decision.write_BxA.any(-1)
  if (rule := _held(state)) is not None:
    decision = held.hold(rule, view, decision, at)
  if sampler.plan.settles:
    stay_B = jnp.zeros_like(act_B) if decision.stay_B is None else decision.stay_B
    decision = decision.replace(stay_B=stay_B | full_B)

  # 4. commit tokens and keys, then move each row on.
  decides_B = act_B & ~commits_B
  kind_B = jnp.where(commits_B, 2, jnp.where(full_B, 0, 1))
  kind_BxK = (kind_B[:, None] == jnp.arange(len(FORWARD_KINDS))[None, :]) & act_B[:, None]
  canvas = canvas.replace(
    forwards_Bx3=canvas.forwards_Bx3 + kind_BxK,
    queries_B=canvas.queries_B + jnp.where(act_B, seen.queries_B, 0),
    computed_B=canvas.computed_B + seen.computed_B,
  )
  canvas = _write(canvas, view, decision, decides_B)
  canvas = shifts.carry_out(sampler, canvas, view, decision, decides_B)
  if sampler.on_eos == "fill":
    rows_B = decides_B & ends.fills_after(sampler, full_B)
    canvas = ends.fill(sampler, canvas, rows_B, jnp.zeros_like(canvas.start_B))
  policy = where_rows(decides_B & ~alone_B, policy, state.policy)
  if sampler.causal_context:  # the block that its policy enters begins behind the first token
    entered = sampler.policy.enter(in_block(sampler, canvas), state.policy)
    policy = where_rows(alone_B, entered, policy)
  state = state.replace(
    canvas=canvas,
    cache=seen.cache,
    policy=policy,
    step_B=state.step_B + (decides_B & ~at.commits_B),
    cached_B=jnp.where(act_B, sampler.plan.cached_to_B(at), state.cached_B),
    renewed_B=jnp.where(act_B, full_B, state.renewed_B),
    soft_BxAxD=_soften(sampler, state, view, decides_B),
    served=_served(state, view, decision, decides_B),
    waited_B=waited_B,
  )
  return _advance(sampler, state, decision, decides_B)


def _phases(
  sampler: Sampler, state: LoopState, at: Progress, may_refresh: bool | Array
) -> tuple[Array, Array]:
  """Rows that compute the whole canvas, and rows that take part at all."""
  live_B = ~state.canvas.done_B
  due_B = sampler.plan.refresh_B(at) & live_B
  if sampler.refresh_rows:
    waited_1xB = state.waited_B[None].astype(jnp.float32)
    rows = jnp.full(1, sampler.refresh_rows)
    full_B = select.top(waited_1xB, due_B[None], rows)[0] & may_refresh
    return full_B, live_B & (full_B | ~due_B)
  return due_B, live_B if sampler.positions else live_B & (due_B | ~due_B.any())


def progress(sampler: Sampler, state: LoopState) -> Progress:
  """Where each row stands."""
  canvas = state.canvas
  turn_B = canvas.turn_B
  slot_L = jnp.arange(canvas.tokens_BxL.shape[1])
  return Progress(
    answer_B=canvas.answer_B,
    start_B=canvas.start_B,
    step_B=state.step_B,
    turn_B=turn_B,
    reach_B=_reach(sampler, state),
    cached_B=state.cached_B,
    commits_B=jnp.zeros_like(canvas.done_B),
    windows_B=canvas.forwards_Bx3[:, 1],
    renewed_B=state.renewed_B,
    masked_BxL=masked(canvas, sampler.mask_id),
    when_BxL=canvas.when_BxL,
    wrote_BxL=(canvas.when_BxL == turn_B[:, None]) & (turn_B > 0)[:, None],
    next_BxL=sampler.policy.upcoming(state.policy, state.step_B),
    filled_BxL=_filled(sampler, canvas, state.cache),
    inside_BxL=slot_L[None, :] < canvas.length_B[:, None],
    block=sampler.block,
    shift=sampler.shift,
  )


def _reach(sampler: Sampler, state: LoopState) -> Array:
  """Where the policy's work ends: with the active block, unless it works ahead."""
  reach_B = sampler.policy.reach(state.policy)
  return state.canvas.start_B + sampler.block if reach_B is None else reach_B


def _filled(sampler: Sampler, canvas: Canvas, cache: KVCache | None) -> Array:
  """Slots whose keys are cached; those of the rows themselves where guidance doubles them."""
  if cache is None or sampler.plan.choice is not None:  # a layer's own
    return jnp.zeros_like(canvas.open_BxL)
  return cache.filled_BxS[: canvas.open_BxL.shape[0]]


def _view(
  sampler: Sampler, state: LoopState, at: Progress, stats: State, scored_BxA: Array
) -> View:
  canvas, slot_BxA = state.canvas, scope(sampler, state.canvas)
  inside_BxA = slot_BxA < canvas.tokens_BxL.shape[1]
  masked_BxA = at_slot(at.masked_BxL, slot_BxA) & inside_BxA
  now_BxA = masked_BxA & scored_BxA & (slot_BxA < at.reach_B[:, None])
  if (rule := _held(state)) is not None:
    now_BxA &= at_slot(rule.set_BxL, slot_BxA) != WAITS
  return View(
    slot_BxA=slot_BxA,
    tokens_BxA=at_slot(canvas.tokens_BxL, slot_BxA),
    masked_BxA=now_BxA,
    later_BxA=masked_BxA & ~now_BxA,
    open_BxA=at_slot(canvas.open_BxL, slot_BxA) & inside_BxA,
    inside_BxA=slot_BxA < canvas.length_B[:, None],
    scored_BxA=scored_BxA,
    stats=stats,
    start_B=canvas.start_B,
    step_B=state.step_B,
    turn_B=at.turn_B,
    mask_id=sampler.mask_id,
    threshold_B=None if state.served is None else state.served.threshold_B,
  )


def _held(state: LoopState) -> Held | None:
  return None if state.served is None else state.served.held


def _served(state: LoopState, view: View, decision: Decision, decides_B: Array) -> Served | None:
  """Marks rows that have just decided by NaN: what they write from here on means nothing.

  Of rows that are held to sets it also keeps how unsure each choice was.
  """
  served = state.served
  if served is None:
    return None
  nan_B = (view.masked_BxA & jnp.isnan(view.stats.lse)).any(-1)
  served = served.replace(broken_B=served.broken_B | (nan_B & decides_B))
  if served.held is None:
    return served
  batch, slots = served.entropy_BxL.shape
  wrote_BxA = decision.write_BxA & view.masked_BxA & decides_B[:, None]
  into_BxA = jnp.where(wrote_BxA, view.slot_BxA, slots)  # out of range: dropped
  entropy_BxL = served.entropy_BxL.at[jnp.arange(batch)[:, None], into_BxA].set(
    view.stats.entropy, mode="drop"
  )
  return served.replace(entropy_BxL=entropy_BxL)


def _row_keys(canvas: Canvas, coupled: bool) -> tuple[Array, Array]:
  """This forward's keys (candidates, policy): of the row's key and its deciding forwards so far.

  coupled: the candidates' key is that of the row, the same at every forward.
  """
  turn_B = canvas.turn_B
  key_Bx2 = jax.vmap(lambda key, turn: jax.random.split(jax.random.fold_in(key, turn)))(
    canvas.key_B, turn_B
  )
  if coupled:
    fixed_B = jax.vmap(lambda key: jax.random.fold_in(key, 0))(canvas.key_B)
    key_Bx2 = key_Bx2.at[:, 0].set(jax.vmap(lambda key: jax.random.split(key)[0])(fixed_B))
  return key_Bx2[:, 0], key_Bx2[:, 1]


def _write(canvas: Canvas, view: View, decision: Decision, decides_B: Array) -> Canvas:
  """Puts the decided tokens on the canvas, and counts what was masked again."""
  write_BxA = decision.write_BxA & view.open_BxA & decides_B[:, None]
  undone_BxA = write_BxA & (decision.token_BxA == view.mask_id) & (view.tokens_BxA != view.mask_id)
  is_candidate_BxA = decision.token_BxA == view.stats.token  # else nobody knows how probable it is
  logp_BxA = jnp.where(is_candidate_BxA, view.stats.logit - view.stats.lse, jnp.nan)
  canvas = write(
    canvas, write_BxA, view.slot_BxA, decision.token_BxA, turn_B=canvas.turn_B, logp_BxA=logp_BxA
  )
  return canvas.replace(remasked_B=canvas.remasked_B + undone_BxA.sum(-1))


def _first_alone(view: View, decision: Decision, alone_B: Array) -> Decision:
  """Rows `alone`: the block's first token, sure or not, and nothing else.

  Windows without the query before them never predict it. Fast-dLLM's code for Dream.
  """
  first_BxA = view.masked_BxA & (view.slot_BxA == view.start_B[:, None])
  alone_Bx1 = alone_B[:, None]

  def unless_alone(asked: Array | None) -> Array | None:
    return None if asked is None else asked & ~(alone_B if asked.ndim == 1 else alone_Bx1)

  advance_B = decision.advance_B
  return decision.replace(
    write_BxA=jnp.where(alone_Bx1, first_BxA, decision.write_BxA),
    token_BxA=jnp.where(alone_Bx1, view.stats.token, decision.token_BxA),
    stop_B=unless_alone(decision.stop_B),
    stay_B=unless_alone(decision.stay_B),
    leave_B=unless_alone(decision.leave_B),
    insert_BxA=unless_alone(decision.insert_BxA),
    delete_BxA=unless_alone(decision.delete_BxA),
    advance_B=None if advance_B is None else jnp.where(alone_B, 0, advance_B),
  )


def _no_soft(sampler: Sampler, canvas: Canvas) -> Array:
  return jnp.zeros((*scope(sampler, canvas).shape, sampler.denoise.width), jnp.float32)


def _soften(sampler: Sampler, state: LoopState, view: View, decides_B: Array) -> Array | None:
  """What the slots in scope carry from here on, while they are not decided."""
  if state.soft_BxAxD is None:
    return None
  weight_B = sampler.policy.soft_weight(view.turn_B)
  new_BxA = view.scored_BxA & decides_B[:, None]
  return jnp.where(new_BxA[:, :, None], weight_B[:, None, None] * view.stats.soft, state.soft_BxAxD)


def _advance(sampler: Sampler, state: LoopState, decision: Decision, decides_B: Array) -> LoopState:
  """Rows whose block is finished move to their next block with a masked slot, or are done."""
  if decision.advance_B is not None:
    return drafts.advance(sampler, state, decision.advance_B, decides_B)
  if sampler.policy.slides:
    return sliding.advance(sampler, state, decides_B)
  canvas = state.canvas
  masked_BxL = masked(canvas, sampler.mask_id)
  slot_L = jnp.arange(masked_BxL.shape[1])
  end_B = canvas.start_B + sampler.block
  later_BxL = masked_BxL & (slot_L[None, :] >= end_B[:, None])

  finished_B = ~_left(sampler, canvas, masked_BxL).any(-1)
  if decision.stay_B is not None:
    finished_B &= ~decision.stay_B
  if decision.leave_B is not None:
    finished_B |= decision.leave_B
  finished_B &= decides_B
  if sampler.on_eos == "fill_block":
    canvas = ends.fill(sampler, canvas, finished_B, end_B)
    later_BxL &= masked(canvas, sampler.mask_id)
  stopped_B = ends.stopped(sampler, canvas, masked_BxL, finished_B) & decides_B
  if decision.stop_B is not None:
    stopped_B |= decision.stop_B & decides_B

  more_B = later_BxL.any(-1)
  jump_B = jnp.where(more_B, (jnp.argmax(later_BxL, axis=-1) - end_B) // sampler.block, 0)
  moves_B = finished_B & more_B & ~stopped_B
  spent_B = canvas.forwards_Bx3.sum(-1) >= sampler.max_forwards
  done_B = canvas.done_B | stopped_B | (finished_B & ~more_B) | spent_B
  start_B = jnp.where(moves_B, end_B + jump_B * sampler.block, canvas.start_B)
  cached_B = state.cached_B
  if sampler.plan.commits and sampler.commit == "free":  # the forward saw the block's last tokens
    open_BxA = at_slot(canvas.open_BxL, scope(sampler, canvas))
    unchanged_B = ~(decision.changes_BxA & open_BxA).any(-1)
    cached_B = jnp.where(moves_B & unchanged_B, end_B, cached_B)
  state = state.replace(
    canvas=canvas.replace(start_B=start_B, done_B=done_B),
    step_B=jnp.where(moves_B, 0, state.step_B),
    cached_B=cached_B,
  )
  if state.soft_BxAxD is not None and sampler.scope == "block":
    none_BxAxD = _no_soft(sampler, canvas)
    state = state.replace(soft_BxAxD=where_rows(moves_B, none_BxAxD, state.soft_BxAxD))
  entered = sampler.policy.enter(in_block(sampler, state.canvas), state.policy)
  return state.replace(
    canvas=renoising.begin(sampler, state.canvas, moves_B),
    policy=where_rows(moves_B, entered, state.policy),
  )


def _left(sampler: Sampler, canvas: Canvas, masked_BxL: Array) -> Array:
  """Masked slots that keep a row in its block: those in it, and for scope "canvas" before it."""
  offset_BxL = jnp.arange(masked_BxL.shape[1])[None, :] - canvas.start_B[:, None]
  left_BxL = masked_BxL & (offset_BxL < sampler.block)
  return left_BxL if sampler.scope == "canvas" else left_BxL & (offset_BxL >= 0)
