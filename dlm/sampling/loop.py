"""THE sampling loop: plan -> denoise -> score -> decide -> commit, until every row is done.

Each row is a small state machine with its own block pointer, so rows in different blocks and phases
share one compiled step, and a row sampled alone equals the row in a batch:

  fresh    nothing cached yet: the next forward is the whole canvas (prompt and active block)
  denoise  forwards over the active block; the policy writes tokens after each
  pending  the block before the active one is clean but not cached. commit="separate": the next
           forward is over that block alone and decides nothing. commit="fused": it rides in the
           active block's first forward, one forward fewer for the same tokens
  done     no masked slot is left, a stop id and all before it is written, or max_forwards are spent

In one turn of the loop all rows run the same kind of forward; a row that needs another kind waits.
"""

import jax
import jax.numpy as jnp
from flax import struct

from dlm import masks
from dlm.sampling.sampler import Sampler
from dlm.sampling.score import score
from dlm.types import (
  FORWARD_KINDS,
  Array,
  Canvas,
  Decision,
  KVCache,
  Params,
  State,
  TokenStats,
  View,
)


@struct.dataclass
class LoopState:
  canvas: Canvas
  cache: KVCache | None
  policy: State
  step_B: Array  # deciding forwards spent on the active block
  fresh_B: Array  # nothing cached yet
  pending_B: Array  # the block before the active one waits to be cached


def run(sampler: Sampler, params: Params, canvas: Canvas) -> Canvas:
  """Denoises every row."""
  state = jax.lax.while_loop(
    lambda state: jnp.any(~state.canvas.done_B),
    lambda state: step(sampler, params, state),
    start(sampler, canvas),
  )
  return state.canvas


def start(sampler: Sampler, canvas: Canvas) -> LoopState:
  """The state before the first forward."""
  batch, slots = canvas.tokens_BxL.shape
  block = _Block.of(sampler, canvas)
  return LoopState(
    canvas=canvas,
    cache=sampler.denoise.empty_cache(batch, slots) if sampler.plan.cached else None,
    policy=sampler.policy.init(block.masked_BxA),
    step_B=jnp.zeros(batch, jnp.int32),
    fresh_B=canvas.start_B > 0,
    pending_B=jnp.zeros(batch, bool),
  )


def step(sampler: Sampler, params: Params, state: LoopState) -> LoopState:
  """One forward of the model and what follows from it."""
  canvas = state.canvas
  # 1. plan: which kind of forward, and which rows take part in it.
  refresh_B = sampler.plan.refresh_B(state.step_B, state.fresh_B) & ~canvas.done_B
  full = refresh_B.any()
  act_B = ~canvas.done_B & (refresh_B | ~full)
  commits_B = act_B & state.pending_B & ~full & (sampler.commit == "separate")
  decides_B = act_B & ~commits_B

  # 2. denoise and score.
  block = _Block.of(sampler, canvas)
  key_noise_B, key_policy_B = _row_keys(canvas)
  stats, cache, queries_B = _forward(sampler, params, state, block, key_noise_B, act_B, full)

  # 3. decide.
  view = View(block.tokens_BxA, block.masked_BxA, stats, state.step_B, sampler.mask_id)
  decision, policy = sampler.policy.decide(view, state.policy, key_policy_B)

  # 4. commit tokens, then move each row on.
  kind = jnp.where(full, 0, jnp.where(commits_B, 2, 1))
  kind_BxK = (kind[:, None] == jnp.arange(len(FORWARD_KINDS))[None, :]) & act_B[:, None]
  canvas = canvas.replace(
    forwards_Bx3=canvas.forwards_Bx3 + kind_BxK,
    queries_B=canvas.queries_B + jnp.where(act_B, queries_B, 0),
  )
  canvas = _write(canvas, block, decision, decides_B)
  state = state.replace(
    canvas=canvas,
    cache=cache,
    policy=_where(decides_B, policy, state.policy),
    step_B=state.step_B + decides_B,
    fresh_B=state.fresh_B & ~act_B,
    pending_B=state.pending_B & ~act_B,
  )
  return _advance(sampler, state, decides_B, decision.stop_B & decides_B)


@struct.dataclass
class _Block:
  """The active block of each row; slots past the canvas's end are never masked."""

  slot_BxA: Array
  tokens_BxA: Array
  masked_BxA: Array

  @classmethod
  def of(cls, sampler: Sampler, canvas: Canvas) -> "_Block":
    slots = canvas.tokens_BxL.shape[1]
    slot_BxA = canvas.start_B[:, None] + jnp.arange(sampler.block)[None, :]
    inside_BxA = slot_BxA < slots
    clipped_BxA = jnp.minimum(slot_BxA, slots - 1)
    masked_BxL = _masked(canvas, sampler.mask_id)
    return cls(
      slot_BxA=slot_BxA,
      tokens_BxA=jnp.take_along_axis(canvas.tokens_BxL, clipped_BxA, axis=1),
      masked_BxA=jnp.take_along_axis(masked_BxL, clipped_BxA, axis=1) & inside_BxA,
    )


def _masked(canvas: Canvas, mask_id: int) -> Array:
  """Still to be written. A mask id in the prompt is text: only open slots count."""
  return canvas.open_BxL & (canvas.tokens_BxL == mask_id)


def _row_keys(canvas: Canvas) -> tuple[Array, Array]:
  """This forward's keys (candidates, policy), from the row's key and its deciding forwards so far.

  Commit forwards are not counted: fused and separate commits then draw the same noise.
  """
  turn_B = canvas.forwards_Bx3[:, 0] + canvas.forwards_Bx3[:, 1]
  key_Bx2 = jax.vmap(lambda key, turn: jax.random.split(jax.random.fold_in(key, turn)))(
    canvas.key_B, turn_B
  )
  return key_Bx2[:, 0], key_Bx2[:, 1]


def _forward(
  sampler: Sampler,
  params: Params,
  state: LoopState,
  block: _Block,
  key_B: Array,
  act_B: Array,
  full: Array,
) -> tuple[TokenStats, KVCache | None, Array]:
  """Runs the model over the whole canvas or a window; statistics of the active block.

  Also returns the query positions each row asked for.
  """
  canvas = state.canvas
  batch, slots = canvas.tokens_BxL.shape
  masked_BxL = _masked(canvas, sampler.mask_id)

  def over(first_B: Array, width: int) -> tuple[TokenStats, KVCache | None]:
    """One forward over `width` slots from `first`, moved left where it would leave the canvas."""
    width = min(width, slots)
    first_B = jnp.clip(first_B, 0, slots - width)
    slot_BxW = first_B[:, None] + jnp.arange(width)[None, :]
    ask_BxA = jnp.clip(block.slot_BxA - sampler.shift - first_B[:, None], 0, width - 1)
    write_BxW = None
    if sampler.plan.cached:
      write_BxW = sampler.plan.write_BxW(slot_BxW, canvas.start_B) & act_B[:, None]
    time_BxW = None
    if sampler.clock is not None:
      time_BxW = sampler.clock(masked_BxL, canvas.open_BxL, slot_BxW)
    out = sampler.denoise(
      params,
      jnp.take_along_axis(canvas.tokens_BxL, slot_BxW, axis=1),
      slot_BxW=slot_BxW,
      mask=masks.within(sampler.sees(slot_BxW, slots), canvas.length_B),
      time_BxW=time_BxW,
      cache=state.cache,
      write_BxW=write_BxW,
      ask_BxA=ask_BxA,
    )
    stats = score(
      out.head,
      sampler.spec(),
      current_BxA=block.tokens_BxA,
      key_B=key_B,
      slot_BxA=block.slot_BxA,
      implementation=sampler.implementation,
    )
    return stats, out.cache

  def whole() -> tuple[TokenStats, KVCache | None]:
    return over(jnp.zeros(batch, jnp.int32), slots)

  if not sampler.plan.cached:
    return *whole(), canvas.length_B

  before_B = jnp.where(state.pending_B | bool(sampler.shift), sampler.block, 0)
  if sampler.commit == "separate":

    def window() -> tuple[TokenStats, KVCache | None]:
      return over(canvas.start_B - before_B, sampler.block)

    queries_B = jnp.full_like(canvas.start_B, sampler.block)
  else:

    def window() -> tuple[TokenStats, KVCache | None]:
      wide = jnp.any(state.pending_B & act_B) | bool(sampler.shift)
      return jax.lax.cond(
        wide,
        lambda: over(canvas.start_B - sampler.block, 2 * sampler.block),
        lambda: over(canvas.start_B, sampler.block),
      )

    queries_B = before_B + sampler.block
  stats, cache = jax.lax.cond(full, whole, window)
  return stats, cache, jnp.where(full, canvas.length_B, queries_B)


def _write(canvas: Canvas, block: _Block, decision: Decision, decides_B: Array) -> Canvas:
  """Puts the decided tokens on the canvas; closed slots and padding stay as they are."""
  slots = canvas.tokens_BxL.shape[1]
  row_Bx1 = jnp.arange(canvas.tokens_BxL.shape[0])[:, None]
  clipped_BxA = jnp.minimum(block.slot_BxA, slots - 1)
  open_BxA = jnp.take_along_axis(canvas.open_BxL, clipped_BxA, axis=1)
  write_BxA = decision.write_BxA & open_BxA & decides_B[:, None]
  slot_BxA = jnp.where(write_BxA, block.slot_BxA, slots)  # out of range: dropped
  turn_B = canvas.forwards_Bx3[:, 0] + canvas.forwards_Bx3[:, 1]
  turn_BxA = jnp.broadcast_to(turn_B[:, None], slot_BxA.shape)
  return canvas.replace(
    tokens_BxL=canvas.tokens_BxL.at[row_Bx1, slot_BxA].set(decision.token_BxA, mode="drop"),
    when_BxL=canvas.when_BxL.at[row_Bx1, slot_BxA].set(turn_BxA, mode="drop"),
  )


def _advance(sampler: Sampler, state: LoopState, decides_B: Array, stop_B: Array) -> LoopState:
  """Rows whose block is finished move to their next block with a masked slot, or are done."""
  canvas = state.canvas
  block = _Block.of(sampler, canvas)
  finished_B = decides_B & ~block.masked_BxA.any(-1)
  stopped_B = stop_B | (decides_B & _stopped(sampler, canvas, block))

  slot_L = jnp.arange(canvas.tokens_BxL.shape[1])
  end_B = canvas.start_B + sampler.block
  later_BxL = _masked(canvas, sampler.mask_id) & (slot_L[None, :] >= end_B[:, None])
  more_B = later_BxL.any(-1)
  jump_B = jnp.where(more_B, (jnp.argmax(later_BxL, axis=-1) - end_B) // sampler.block, 0)
  moves_B = finished_B & more_B & ~stopped_B

  spent_B = canvas.forwards_Bx3.sum(-1) >= sampler.max_forwards
  done_B = canvas.done_B | stopped_B | (finished_B & ~more_B) | spent_B
  start_B = jnp.where(moves_B, end_B + jump_B * sampler.block, canvas.start_B)
  state = state.replace(
    canvas=canvas.replace(start_B=start_B, done_B=done_B),
    step_B=jnp.where(moves_B, 0, state.step_B),
    # Skipped blocks were clean all along: a whole-canvas forward caches them, else one block waits.
    fresh_B=state.fresh_B | (moves_B & (jump_B > 0)),
    pending_B=state.pending_B | (moves_B & (jump_B == 0)),
  )
  entered = sampler.policy.init(_Block.of(sampler, state.canvas).masked_BxA)
  return state.replace(policy=_where(moves_B, entered, state.policy))


def _stopped(sampler: Sampler, canvas: Canvas, block: _Block) -> Array:
  """A stop id was written in the active block, and all before it is written too."""
  clipped_BxA = jnp.minimum(block.slot_BxA, canvas.tokens_BxL.shape[1] - 1)
  written_BxA = jnp.take_along_axis(canvas.when_BxL, clipped_BxA, axis=1) >= 0
  stop_BxA = written_BxA & jnp.isin(block.tokens_BxA, jnp.array(sampler.eos_ids, jnp.int32))
  waits_BxA = block.masked_BxA & (jnp.cumsum(stop_BxA, axis=-1) == 0)
  return stop_BxA.any(-1) & ~waits_BxA.any(-1)


def _where(rows_B: Array, new: State, old: State) -> State:
  """Row-wise choice; every leaf of a policy's state leads with B."""

  def choose(a: Array, b: Array) -> Array:
    return jnp.where(rows_B.reshape(-1, *[1] * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, new, old)
