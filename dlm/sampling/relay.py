"""Rows that take turns: as many run as a forward computes well, and one that is done makes room.

  rows -> keys of their prompts, once for all that have the same -> places -> rows that are done

The loop runs all rows until the last is done; those that are done before stand by, or are left out
of forwards that gather the others' keys first. Here a batch has fewer places than rows, a place's
keys stay where they are, and the next row moves in. Keys are held of as many canvases as there are
places, and of one for each prompt. A row's tokens are those of `loop.run`, but for rounding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dlm.sampling import loop
from dlm.sampling.caching import ExactBlock
from dlm.sampling.forward import Ask, forward, share_out
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import LoopState, row_axes, where_rows
from dlm.types import Array, Canvas, KVCache, Params


def runs(sampler: Sampler) -> bool:
  """Whether rows may take turns: what a prompt's forward leaves behind is its keys, and no more.

  Other caches are filled by forwards over whole canvases, answers included, or in parts; keys in
  fewer bits were not tried.
  """
  policy, exact = sampler.policy, type(sampler.plan) is ExactBlock and not sampler.plan.fill
  own = policy.draft_span or policy.slides or sampler.first_alone
  return exact and not (own or sampler.guidance or sampler.cache_format)


def of_one_width(sampler: Sampler) -> Sampler:
  """The sampler, with finished blocks cached by forwards as wide as those that decide.

  Rows that begin their blocks in different turns make of most turns two forwards where commits are
  fused, one for each width; separate ones are a forward more a block, of the rows that need it, and
  write the same tokens. As it was where commits decide, or must be fused.
  """
  bound = sampler.shift or sampler.policy.slides
  if bound or type(sampler.plan) is not ExactBlock or sampler.commit != "fused":
    return sampler
  return dataclasses.replace(sampler, commit="separate")


def run(sampler: Sampler, params: Params, canvas: Canvas, *, group: int = 1) -> Canvas:
  """Denoises every row, `Sampler.positions` at a time (0: all rows).

  A prompt's forward is told of none of its rows: `Canvas.forwards_Bx3` and `queries_B` count what
  comes after it.

  Args:
    group: rows that have a prompt in common, side by side.
  """
  rows = len(canvas.done_B)
  places = sampler.rows_together(sampler.block, rows, whole=False)
  word_Bx2, impl = jax.random.key_data(canvas.key_B), jax.random.key_impl(canvas.key_B)
  canvas = canvas.replace(key_B=None)

  def begun(row_R: Array) -> Canvas:
    key_R = jax.random.wrap_key_data(word_Bx2[row_R], impl=impl)
    return jax.tree.map(lambda x: x[row_R], canvas).replace(key_B=key_R)

  given = _prompts(sampler, params, begun(jnp.arange(0, rows, group)))
  idle = begun(jnp.arange(places)).replace(done_B=jnp.ones(places, bool))
  nobody_R = jnp.full(places, rows)  # out of range: dropped
  relay = (canvas, loop.start(sampler, idle), nobody_R, jnp.int32(0))

  def waits(relay: tuple[Canvas, LoopState, Array, Array]) -> Array:
    _, state, _, first = relay
    return state.canvas.done_B.any() & (first < rows)

  def admit(
    relay: tuple[Canvas, LoopState, Array, Array],
  ) -> tuple[Canvas, LoopState, Array, Array]:
    every, state, row_R, first = relay
    done_R = state.canvas.done_B
    next_R = first + jnp.cumsum(done_R) - 1
    new_R = done_R & (next_R < rows)
    every = _left(every, state.canvas, jnp.where(new_R, row_R, rows))
    row_R = jnp.where(new_R, next_R, row_R)
    known_R = jnp.minimum(row_R, rows - 1)
    began, prompt_R = loop.start(sampler, begun(known_R)), known_R // group
    cache = _moved(state.cache, given.cache, new_R, prompt_R)
    key_R = began.canvas.key_B  # also of those who stay
    began = began.replace(cached_B=given.cached_B[prompt_R])
    state = where_rows(new_R, *(_bare(each) for each in (began, state)))
    state = state.replace(cache=cache, canvas=state.canvas.replace(key_B=key_R))
    return every, state, row_R, first + new_R.sum(dtype=jnp.int32)

  def turn(
    relay: tuple[Canvas, LoopState, Array, Array],
  ) -> tuple[Canvas, LoopState, Array, Array]:
    every, state, *whose = jax.lax.while_loop(waits, admit, relay)
    return every, loop.step(sampler, params, state), *whose

  every, state, row_R, _ = jax.lax.while_loop(
    lambda relay: (relay[-1] < rows) | ~relay[1].canvas.done_B.all(), turn, relay
  )
  every = _left(every, state.canvas, row_R)
  return every.replace(key_B=jax.random.wrap_key_data(word_Bx2, impl=impl))


def _bare(state: LoopState) -> LoopState:
  return state.replace(cache=None, canvas=state.canvas.replace(key_B=None))


def _prompts(sampler: Sampler, params: Params, canvas: Canvas) -> LoopState:
  """Rows before their first forward, with the keys of what stands before their first block.

  Those of prompts of a block or less ride in the first window, as they do in the loop.
  """
  state = loop.start(sampler, canvas)
  at = loop.progress(sampler, state)
  long_B = sampler.plan.refresh_B(at) & ~canvas.done_B
  ask = Ask(
    canvas=state.canvas,
    at=at,
    act_B=long_B,
    full_B=long_B,
    key_B=canvas.key_B,  # nothing is drawn that is kept
    soft_BxAxD=state.soft_BxAxD,
    barred_B=sampler.policy.barred(state.policy),
    gather_BxAxJ=sampler.policy.gather_ids(state.policy),
  )
  turn = share_out(sampler, state.canvas, at, long_B, long_B, None)
  cache = forward(sampler, params, ask, turn, state.cache).cache
  before_BxL = at.slot_L[None, :] < at.start_B[:, None]
  cache = cache.replace(filled_BxS=cache.filled_BxS & before_BxL & long_B[:, None])
  return state.replace(cache=cache, cached_B=jnp.where(long_B, at.start_B, 0))


def _moved(into: KVCache, given: KVCache, new_R: Array, prompt_R: Array) -> KVCache:
  """The places' keys; the new rows' are those of their prompts.

  By a loop over these: XLA puts a row in its place there, and copies no other.
  """
  axes = row_axes(into)

  def put(i: Array, into: KVCache, order_R: Array) -> KVCache:
    place = order_R[i]

    def one(axis: int, x: Array, prompts: Array) -> Array:
      row = jax.lax.dynamic_slice_in_dim(prompts, prompt_R[place], 1, axis)
      return jax.lax.dynamic_update_slice_in_dim(x, row, place, axis)

    return jax.tree.map(one, axes, into, given)

  order_R = jnp.argsort(~new_R, stable=True)
  return jax.lax.fori_loop(0, new_R.sum(), functools.partial(put, order_R=order_R), into)


def _left(every: Canvas, own: Canvas, row_R: Array) -> Canvas:
  """All rows, with those that leave their places as they are now; out of range: dropped."""
  own = own.replace(key_B=None)
  return jax.tree.map(lambda x, mine: x.at[row_R].set(mine, mode="drop"), every, own)
