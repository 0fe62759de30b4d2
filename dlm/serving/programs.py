"""What a server runs on the device, compiled before it is ready: one set for each canvas size."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dlm.sampling import loop
from dlm.sampling.canvas import make_canvas
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import Held, LoopState, Served, row_axes
from dlm.types import Array, Canvas, Params


@struct.dataclass
class Pages:
  """Keys of prefixes, by page: see `dlm.serving.prefixes`."""

  k_PxYxTxKxH: Array  # T tokens a page
  v_PxYxTxKxH: Array


@struct.dataclass
class Report:
  """What the host learns of rows after their turns."""

  canvas: Canvas  # without the keys of its noise
  broken_B: Array
  entropy_BxL: Array | None = None  # of rows that are held to sets, see `Served`


@dataclasses.dataclass(frozen=True)
class Programs:
  """Compiled, so none of them can be compiled again; arrays that change are donated.

  Attributes:
    begin: (canvas, temperature_B, threshold_B, top_p_B) -> state of one row
    decode: (params, state of a tile, live_B, turns, refreshes) -> (state, report)
    held: (params, state of a tile, live_B, Held) -> (state, report), of one turn; None: no row is
      held to sets
    fill: the same of one row, whose prompt is cached; None: prompts are not cached in parts
    insert: (state of a tile, state of one row, its place) -> state of the tile; None: a tile is one
      row, which takes the place of the one before
    load: (state of one row, pages, number, place in the prompt) -> state
    save: (pages, state of one row, number, place in the prompt) -> pages
  """

  begin: Any
  decode: Any
  held: Any | None
  fill: Any | None
  insert: Any | None
  load: Any | None
  save: Any | None
  idle: LoopState  # shapes of a tile
  row: LoopState  # shapes of one row

  @property
  def temporaries(self) -> int:
    """The most bytes that one of them needs beside its arguments and results."""
    run = (self.begin, self.decode, self.held, self.fill, self.insert, self.load, self.save)
    sizes = [each.memory_analysis() for each in run if each is not None]
    return max(each.temp_size_in_bytes for each in sizes)

  def empty(self) -> LoopState:
    """A tile of rows that are done."""
    state = jax.tree.map(_zeros, self.idle)
    done_B = jnp.asarray(np.ones(state.canvas.done_B.shape, bool))
    return state.replace(canvas=state.canvas.replace(done_B=done_B))


def compiled(
  sampler: Sampler,
  params: Params,
  *,
  slots: int,
  tile: int,
  fills: bool,
  pages: Pages | None,
  align: str,
  sets: tuple[int, int] | None,
) -> Programs:
  """Of rows of `slots` slots, `tile` of them together.

  Args:
    fills: prompts are cached in parts.
    pages: shapes of those of the prefix cache, if there is one.
    sets: how many a row may be held to, and the words of one; None: rows are held to none.
  """
  canvas = make_canvas(
    [np.full(1, sampler.mask_id)], [np.ones(1, bool)], [0],
    slots=slots, block=sampler.block, align=align, mask_id=sampler.mask_id, seed=0,
  )  # fmt: skip
  own = np.zeros(1, np.float32)
  begin = functools.partial(_begin, sampler)
  row = jax.eval_shape(begin, canvas, own, own, own)
  idle = jax.tree.map(
    lambda axis, leaf: jax.ShapeDtypeStruct(
      (*leaf.shape[:axis], tile * leaf.shape[axis], *leaf.shape[axis + 1 :]), leaf.dtype
    ),
    _rows_of(row),
    row,
  )
  run, most = functools.partial(_run, sampler), np.int32(0)

  def ready(fn, *args, donate: int | None = None):
    donated = () if donate is None else (donate,)
    return jax.jit(fn, donate_argnums=donated).lower(*args).compile()

  decode = ready(run, params, idle, np.zeros(tile, bool), most, most, donate=1)
  fill = decode if tile == 1 else None
  if tile > 1 and fills:
    fill = ready(run, params, row, np.zeros(1, bool), most, most, donate=1)
  paged, held = pages is not None, None
  if sets is not None:
    # A row that writes one token a forward may need more of them than the policy allows for.
    patient = dataclasses.replace(sampler, max_forwards=sampler.max_forwards + slots)
    rule = Held(
      jax.ShapeDtypeStruct((tile, *sets), np.uint32),
      *[jax.ShapeDtypeStruct((tile, slots), np.int32)] * 2,
    )
    run_held = functools.partial(_run_held, patient)
    held = ready(run_held, params, idle, np.zeros(tile, bool), rule, donate=1)
  return Programs(
    begin=ready(begin, canvas, own, own, own),
    decode=decode,
    held=held,
    fill=fill,
    insert=ready(_insert, idle, row, most, donate=0) if tile > 1 else None,
    load=ready(_load, row, pages, most, most, donate=0) if paged else None,
    save=ready(_save, pages, row, most, most, donate=0) if paged else None,
    idle=idle,
    row=row,
  )


def shapes_of_pages(sampler: Sampler, count: int) -> Pages:
  """Shapes of `count` pages, as long as a part of a prompt that the sampler's plan fills."""
  one = jax.eval_shape(lambda: sampler.denoise.empty_cache(1, sampler.plan.fill))

  def of(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    layers, _, *rest = leaf.shape
    return jax.ShapeDtypeStruct((count, layers, *rest), leaf.dtype)

  return Pages(of(one.k_YxBxSxKxH), of(one.v_YxBxSxKxH))


def empty_pages(shapes: Pages) -> Pages:
  return jax.tree.map(_zeros, shapes)


def _begin(
  sampler: Sampler, canvas: Canvas, temperature_B: Array, threshold_B: Array, top_p_B: Array
) -> LoopState:
  unknown_BxL = jnp.full(canvas.open_BxL.shape, jnp.nan)
  served = Served(temperature_B, threshold_B, top_p_B, jnp.zeros(1, bool), unknown_BxL)
  return loop.start(sampler, canvas, served)


def _run(
  sampler: Sampler, params: Params, state: LoopState, live_B: Array, most: Array, refreshes: Array
) -> tuple[LoopState, Report]:
  """At most so many turns, see `loop.turns`; rows that are not live stay as they are."""
  was_B = state.canvas.done_B
  state = state.replace(canvas=state.canvas.replace(done_B=was_B | ~live_B))
  state = loop.turns(sampler, params, state, most, refreshes)
  done_B = jnp.where(live_B, state.canvas.done_B, was_B)
  state = state.replace(canvas=state.canvas.replace(done_B=done_B))
  return state, Report(state.canvas.replace(key_B=None), state.served.broken_B)


def _run_held(
  sampler: Sampler, params: Params, state: LoopState, live_B: Array, rule: Held
) -> tuple[LoopState, Report]:
  """One turn of rows that are held to sets."""
  state = state.replace(served=state.served.replace(held=rule))
  state, report = _run(sampler, params, state, live_B, np.int32(1), np.int32(1))
  report = report.replace(entropy_BxL=state.served.entropy_BxL)
  return state.replace(served=state.served.replace(held=None)), report


def _insert(tile: LoopState, one: LoopState, place: Array) -> LoopState:
  def put(axis: int, into: Array, row: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(into, row, place, axis)

  return jax.tree.map(put, _rows_of(tile), tile, one)


def _load(one: LoopState, pages: Pages, number: Array, place: Array) -> LoopState:
  cache, size = one.cache, pages.k_PxYxTxKxH.shape[2]

  def put(into_YxBxSxKxH: Array, page_PxYxTxKxH: Array) -> Array:
    page_YxTxKxH = jax.lax.dynamic_index_in_dim(page_PxYxTxKxH, number, keepdims=False)
    return jax.lax.dynamic_update_slice_in_dim(
      into_YxBxSxKxH, page_YxTxKxH[:, None], place * size, 2
    )

  full_BxT = jnp.ones((1, size), bool)
  cache = cache.replace(
    k_YxBxSxKxH=put(cache.k_YxBxSxKxH, pages.k_PxYxTxKxH),
    v_YxBxSxKxH=put(cache.v_YxBxSxKxH, pages.v_PxYxTxKxH),
    filled_BxS=jax.lax.dynamic_update_slice_in_dim(cache.filled_BxS, full_BxT, place * size, 1),
  )
  return one.replace(cache=cache, cached_B=jnp.full_like(one.cached_B, (place + 1) * size))


def _save(pages: Pages, one: LoopState, number: Array, place: Array) -> Pages:
  size = pages.k_PxYxTxKxH.shape[2]

  def put(into_PxYxTxKxH: Array, from_YxBxSxKxH: Array) -> Array:
    own_YxTxKxH = jax.lax.dynamic_slice_in_dim(from_YxBxSxKxH[:, 0], place * size, size, 1)
    return jax.lax.dynamic_update_index_in_dim(into_PxYxTxKxH, own_YxTxKxH, number, 0)

  return Pages(
    put(pages.k_PxYxTxKxH, one.cache.k_YxBxSxKxH), put(pages.v_PxYxTxKxH, one.cache.v_YxBxSxKxH)
  )


def _rows_of(state: LoopState) -> LoopState:
  """Which axis of each leaf holds the rows."""
  axes = jax.tree.map(lambda _: 0, state)
  return axes if state.cache is None else axes.replace(cache=row_axes(state.cache))


def _zeros(shape: jax.ShapeDtypeStruct) -> Array:
  if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(jnp.asarray(np.zeros((*shape.shape, 2), np.uint32)))
  return jnp.asarray(np.zeros(shape.shape, shape.dtype))
