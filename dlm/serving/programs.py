"""What a server runs on the device, compiled before it is ready: one set for each canvas size."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlm import parallel
from dlm.models.packed import Packed
from dlm.sampling import loop
from dlm.sampling.canvas import make_canvas
from dlm.sampling.forward import empty_cache
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import Held, LoopState, Served, axes_of
from dlm.types import Array, Canvas, Params


@struct.dataclass
class Pages:
  """Keys of prefixes, by page: see `dlm.serving.prefixes`."""

  k_PxYxTxKxH: Any  # T tokens a page, or their groups where keys are kept as `models.packed` does
  v_PxYxTxKxH: Any


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
    fewer: the same of the tile's first 1, 2, 4, ... rows, by their number; {}: a row's bits shall
      not depend on how many there are
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
  fewer: dict[int, Any]
  held: Any | None
  fill: Any | None
  insert: Any | None
  load: Any | None
  save: Any | None
  idle: LoopState  # shapes of a tile, and where its rows are
  row: LoopState  # shapes of one row

  @property
  def temporaries(self) -> int:
    """The most bytes that one of them needs on a device beside its arguments and results."""
    run = (self.begin, self.decode, *self.fewer.values(), self.held, self.fill, self.insert)
    run += (self.load, self.save)
    sizes = [each.memory_analysis() for each in run if each is not None]
    return max(each.temp_size_in_bytes for each in sizes)

  def decode_first(self, rows: int) -> Any:
    """The program that decodes the first `rows` of a tile, at least."""
    return next((run for size, run in self.fewer.items() if size >= rows), self.decode)

  def empty(self) -> LoopState:
    """A tile of rows that are done."""
    state = jax.tree.map(_zeros, self.idle)
    done = self.idle.canvas.done_B
    done_B = jax.device_put(np.ones(done.shape, bool), done.sharding)
    return state.replace(canvas=state.canvas.replace(done_B=done_B))


def compiled(
  sampler: Sampler,
  params: Params,
  mesh: Mesh,
  *,
  slots: int,
  tile: int,
  fills: bool,
  pages: Pages | None,
  align: str,
  own_settings: bool,
  exact: bool,
  sets: tuple[int, int] | None,
) -> Programs:
  """Of rows of `slots` slots, `tile` of them together, spread evenly over the devices.

  What is not a tile, one row or the prefix cache, is on all of them.

  Args:
    fills: prompts are cached in parts.
    pages: shapes of those of the prefix cache, if there is one.
    own_settings: rows have a temperature, a threshold and a top-p; else `begin` is given None.
    exact: rows are computed a whole tile together, always.
    sets: how many a row may be held to, and the words of one; None: rows are held to none.
  """
  everywhere = whole(mesh)
  canvas = make_canvas(
    [np.full(1, sampler.mask_id)], [np.ones(1, bool)], [0],
    slots=slots, block=sampler.block, align=align, mask_id=sampler.mask_id, seed=0,
  )  # fmt: skip
  canvas, own, most = _shapes((canvas, np.zeros(1, np.float32), np.int32(0)), everywhere)
  begin, own = (
    functools.partial(_begin, sampler, sets is not None),
    [own if own_settings else None] * 3,
  )
  row = _shapes(jax.eval_shape(begin, canvas, *own), everywhere)
  axes = axes_of(row)
  specs = jax.tree.map(parallel.batch_spec, axes)
  idle = jax.tree.map(
    lambda axis, leaf: jax.ShapeDtypeStruct(
      (*leaf.shape[:axis], tile * leaf.shape[axis], *leaf.shape[axis + 1 :]),
      leaf.dtype,
      sharding=everywhere and NamedSharding(mesh, parallel.batch_spec(axis)),
    ),
    axes,
    row,
  )
  live, one = (
    jax.ShapeDtypeStruct((n,), bool, sharding=sharding)
    for n, sharding in ((tile, idle.canvas.done_B.sharding), (1, everywhere))
  )

  def ready(fn, *args, like: Any = None, donate: int | None = None):
    """`like`: where the results are; None: everywhere."""
    donated = () if donate is None else (donate,)
    placed = {}
    if everywhere is not None:
      places = jax.tree.map(lambda leaf: leaf.sharding, like)
      placed["out_shardings"] = everywhere if like is None else places
    return jax.jit(fn, donate_argnums=donated, **placed).lower(*args).compile()

  by_row, anywhere = parallel.batch_spec(), PartitionSpec()

  def over_rows(fn, *rest: PartitionSpec):
    """Of parameters, a tile, which of its rows are live, and the rest."""
    return parallel.over_shards(fn, mesh, (anywhere, specs, by_row, *rest), (specs, by_row))

  run = functools.partial(_run, sampler)
  report = Report(idle.canvas.replace(key_B=None), idle.served.broken_B)
  decode = ready(
    over_rows(run, anywhere, anywhere),
    *(params, idle, live, most, most),
    like=(idle, report),
    donate=1,
  )
  sizes = itertools.takewhile(lambda size: size < tile, (2**i for i in itertools.count()))
  fewer = {
    size: ready(
      functools.partial(_run_first, sampler, size), params, idle, live, most, most, donate=1
    )
    for size in sizes
    if not exact
  }
  fill = decode if tile == 1 else None
  if tile > 1 and fills:
    fill = ready(run, params, row, one, most, most, donate=1)
  paged, held = pages is not None, None
  if sets is not None:
    # A row that writes one token a forward may need more of them than the policy allows for.
    patient = dataclasses.replace(sampler, max_forwards=sampler.max_forwards + slots)
    rule = Held(
      jax.ShapeDtypeStruct((tile, *sets), np.uint32, sharding=live.sharding),
      *[jax.ShapeDtypeStruct((tile, slots), np.int32, sharding=live.sharding)] * 2,
    )
    held = ready(
      over_rows(functools.partial(_run_held, patient), by_row),
      *(params, idle, live, rule),
      like=(idle, report.replace(entropy_BxL=idle.served.entropy_BxL)),
      donate=1,
    )
  return Programs(
    begin=ready(begin, canvas, *own),
    decode=decode,
    fewer=fewer,
    held=held,
    fill=fill,
    insert=ready(_insert, idle, row, most, like=idle, donate=0) if tile > 1 else None,
    load=ready(_load, row, pages, most, most, donate=0) if paged else None,
    save=ready(_save, pages, row, most, most, donate=0) if paged else None,
    idle=idle,
    row=row,
  )


def whole(mesh: Mesh) -> NamedSharding | None:
  """On every device, all of it; None: there is one, and nothing to say."""
  return NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else None


def _shapes(tree: Any, sharding: NamedSharding | None) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding), tree
  )


def shapes_of_pages(sampler: Sampler, mesh: Mesh, count: int) -> Pages:
  """Shapes of `count` pages, as long as a part of a prompt that the sampler's plan fills.

  Raises:
    ValueError: a page would end within a group of a cache that is coded in groups.
  """
  kept, fill = sampler.kept, sampler.plan.fill
  if kept is not None and fill % kept.group:
    raise ValueError(
      f"serving: fill={fill}, the slots of a page of prefixes, must be a multiple of {kept.group}: "
      f"cache_format={sampler.cache_format!r} codes so many slots together"
    )
  one = jax.eval_shape(lambda: empty_cache(sampler, 1, fill))

  def of(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    layers, _, *rest = leaf.shape
    return jax.ShapeDtypeStruct((count, layers, *rest), leaf.dtype, sharding=whole(mesh))

  return Pages(*(jax.tree.map(of, _coded(x)) for x in (one.k_YxBxSxKxH, one.v_YxBxSxKxH)))


def empty_pages(shapes: Pages) -> Pages:
  return jax.tree.map(_zeros, shapes)


def _begin(
  sampler: Sampler,
  holds: bool,
  canvas: Canvas,
  temperature_B: Array | None,
  threshold_B: Array | None,
  top_p_B: Array | None,
) -> LoopState:
  """`holds`: rows may be held to sets."""
  unknown_BxL = jnp.full(canvas.open_BxL.shape, jnp.nan) if holds else None
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


def _run_first(
  sampler: Sampler,
  size: int,
  params: Params,
  state: LoopState,
  live_B: Array,
  most: Array,
  refreshes: Array,
) -> tuple[LoopState, Report]:
  """`_run` of the first rows of a tile; its report is of these."""
  axes = axes_of(state)
  first = jax.tree.map(lambda axis, x: jax.lax.slice_in_dim(x, 0, size, axis=axis), axes, state)
  first, report = _run(sampler, params, first, live_B[:size], most, refreshes)
  return _insert(state, first, np.int32(0)), report


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

  return jax.tree.map(put, axes_of(tile), tile, one)


def _load(one: LoopState, pages: Pages, number: Array, place: Array) -> LoopState:
  cache, size = one.cache, pages.k_PxYxTxKxH.shape[2]

  def put(into_YxBxSxKxH: Array, page_PxYxTxKxH: Array) -> Array:
    page_YxTxKxH = jax.lax.dynamic_index_in_dim(page_PxYxTxKxH, number, keepdims=False)
    return jax.lax.dynamic_update_slice_in_dim(
      into_YxBxSxKxH, page_YxTxKxH[:, None], place * page_YxTxKxH.shape[1], 2
    )

  full_BxT, cached_B = jnp.ones((1, size), bool), jnp.full_like(one.cached_B, (place + 1) * size)
  cache = cache.replace(
    k_YxBxSxKxH=_leaf_by_leaf(put, cache.k_YxBxSxKxH, pages.k_PxYxTxKxH),
    v_YxBxSxKxH=_leaf_by_leaf(put, cache.v_YxBxSxKxH, pages.v_PxYxTxKxH),
    filled_BxS=jax.lax.dynamic_update_slice_in_dim(cache.filled_BxS, full_BxT, place * size, 1),
    coded_B=None if cache.coded_B is None else cached_B,
  )
  return one.replace(cache=cache, cached_B=cached_B)


def _save(pages: Pages, one: LoopState, number: Array, place: Array) -> Pages:
  def put(into_PxYxTxKxH: Array, from_YxBxSxKxH: Array) -> Array:
    size = into_PxYxTxKxH.shape[2]
    own_YxTxKxH = jax.lax.dynamic_slice_in_dim(from_YxBxSxKxH[:, 0], place * size, size, 1)
    return jax.lax.dynamic_update_index_in_dim(into_PxYxTxKxH, own_YxTxKxH, number, 0)

  return Pages(
    _leaf_by_leaf(put, pages.k_PxYxTxKxH, one.cache.k_YxBxSxKxH),
    _leaf_by_leaf(put, pages.v_PxYxTxKxH, one.cache.v_YxBxSxKxH),
  )


def _leaf_by_leaf(put: Callable[[Array, Array], Array], into: Any, own: Any) -> Any:
  """`into` with every leaf put into: packed keys of a page and of a row count different slots.

  Only codes are: a row keeps its residual, of which a page has none.
  """
  leaves, tree = jax.tree.flatten(_coded(into))
  own = jax.tree.leaves(_coded(own))
  made = tree.unflatten(put(*pair) for pair in zip(leaves, own, strict=True))
  return made.replace(recent=into.recent) if isinstance(into, Packed) else made


def _coded(stored: Any) -> Any:
  """Keys without those that wait for their group."""
  return stored.replace(recent=None) if isinstance(stored, Packed) else stored


def _zeros(shape: jax.ShapeDtypeStruct) -> Array:
  if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
    zeros = jax.random.wrap_key_data(jnp.asarray(np.zeros((*shape.shape, 2), np.uint32)))
  else:
    zeros = np.zeros(shape.shape, shape.dtype)
  return jax.device_put(zeros, shape.sharding)
