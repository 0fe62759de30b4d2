"""The vocabulary in tiles: logits of a few thousand ids at a time, never of all of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, precision, shards

Array = jax.Array
State = TypeVar("State")

# Measured on 2 CPU cores (rows 32 .. 4096, D 128 .. 1024, V 260 .. 32000): 2^17 to 2^20 elements a
# tile are equally fast, more are slower, because a tile then leaves the caches. With many rows 512
# ids are still fast; fewer make thin matmuls. 4 MiB of logits are also little beside any model.
_TILE_ELEMENTS = 1 << 20
_TILE_MIN = 512


class Tile(NamedTuple):
  """Rows `start .. start + T` of the unembedding at hand."""

  start: Array | int
  ids_T: Array  # int32
  live_T: Array  # bool: not forbidden, and not already in an earlier tile
  unembed_TxD: Array


class Held(NamedTuple):
  """The ids of the unembedding at hand: all, or those of one device of several."""

  first: Array | int
  total: int  # ids of all devices
  axis: str | None = None  # of the mesh, over which they are split; None: they are not


def held(unembed_VxD: Array, total: int) -> Held:
  """Of a device's part of an unembedding of `total` ids."""
  own = unembed_VxD.shape[0]
  if own == total:
    return Held(0, total)
  return Held(jax.lax.axis_index(shards.TENSOR) * own, total, shards.TENSOR)


def of_all(merge: Callable[[State, State], State], own: State, held: Held) -> State:
  """The state of all ids from those of each device's: `merge(of lower ids, of higher ids)`."""
  if held.axis is None:
    return own
  parts = jax.lax.all_gather(own, held.axis)
  each = zip(*(list(leaf) for leaf in jax.tree.leaves(parts)), strict=True)
  return functools.reduce(merge, [jax.tree.unflatten(jax.tree.structure(own), x) for x in each])


def tile_size(hidden_RxD: Array, unembed_VxD: Array, asked: int | None = None) -> int:
  """Ids a tile: those for which [rows, tile] has about 2^20 elements, at least 512, at most all.

  On a CPU XLA copies a tile of the unembedding before it multiplies, which with few rows takes as
  long as the product. So all ids are one tile where their logits are fewer than that copy's
  elements: faster, and less memory too.

  Args:
    asked: so many in its place, or all where there are fewer.
  """
  (rows, width), vocab = hidden_RxD.shape, unembed_VxD.shape[0]
  if asked:
    return min(asked, vocab)
  tile = max(_TILE_MIN, _TILE_ELEMENTS // max(rows, 1) // 128 * 128)
  if dispatch.backend() == "cpu" and rows * vocab <= tile * width:
    return vocab
  return min(tile, vocab)


def sweep(
  step: Callable[[State, Tile], State],
  state: State,
  unembed_VxD: Array,
  *,
  tile: int,
  forbidden: tuple[int, ...],
  first: Array | int = 0,
) -> State:
  """Folds `step` over the tiles, in order of ids, the lowest being `first`. One tile: no loop.

  The last tile of a ragged vocabulary is moved back to end at V, so that no padded copy of the
  unembedding is made; the ids that it shares with the tile before are not live.
  """
  vocab = unembed_VxD.shape[0]

  def at(i: Array | int, state: State) -> State:
    begin = i * tile
    start = jnp.minimum(begin, vocab - tile)
    offset_T = start + jnp.arange(tile, dtype=jnp.int32)
    ids_T = first + offset_T
    live_T = (offset_T >= begin) & allowed(ids_T, forbidden)
    unembed_TxD = jax.lax.dynamic_slice_in_dim(unembed_VxD, start, tile)
    return step(state, Tile(start, ids_T, live_T, unembed_TxD))

  if tile >= vocab:
    ids_V = first + jnp.arange(vocab, dtype=jnp.int32)
    return step(state, Tile(0, ids_V, allowed(ids_V, forbidden), unembed_VxD))
  return jax.lax.fori_loop(0, -(-vocab // tile), at, state)


def no_gradients(hidden_RxD: Array, unembed_VxD: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
  """What `add_gradients` adds to: hidden's in float32, the unembedding's in `dtype`."""
  return (
    jnp.zeros_like(hidden_RxD, dtype=jnp.float32),
    jnp.zeros_like(unembed_VxD, dtype=dtype),
  )


def add_gradients(
  state: tuple[Array, Array],
  d_z_RxT: Array,
  hidden_RxD: Array,
  unembed_TxD: Array,
  start: Array | int,
) -> tuple[Array, Array]:
  """Those of the logits of ids `start .. start + T`; of ids that were there before they are 0."""
  d_hidden_RxD, d_unembed_VxD = state
  d_hidden_RxD += jnp.dot(d_z_RxT, unembed_TxD, preferred_element_type=jnp.float32)
  d_tile_TxD = jnp.dot(d_z_RxT.T, hidden_RxD, preferred_element_type=jnp.float32)
  old_TxD = jax.lax.dynamic_slice_in_dim(d_unembed_VxD, start, len(unembed_TxD))
  new_TxD = old_TxD + d_tile_TxD.astype(d_unembed_VxD.dtype)
  return d_hidden_RxD, jax.lax.dynamic_update_slice_in_dim(d_unembed_VxD, new_TxD, start, 0)


def summed_gradients(
  shares: Callable[[tuple[jnp.dtype, jnp.dtype]], tuple[Array, Array]],
  split: shards.Axes,
  dtypes: tuple[jnp.dtype, jnp.dtype],
) -> list[Array]:
  """Of hidden and unembedding, from each device's shares: a sum over ids, and one over rows.

  Args:
    shares: in the types that it is given: float32 of what is summed over devices.
    split: over what rows and ids are split, asked outside of `shards.run`.
  """
  others = (split.tensor,) if split.tensor else (), split.rows
  asked = tuple(
    jnp.dtype(jnp.float32) if axes else dtype for axes, dtype in zip(others, dtypes, strict=True)
  )
  return [
    (jax.lax.psum(share, axes) if axes else share).astype(dtype)
    for share, axes, dtype in zip(shares(asked), others, dtypes, strict=True)
  ]


def allowed(ids_T: Array, forbidden: tuple[int, ...]) -> Array:
  """Bool [T]: False for the forbidden ids."""
  forbidden_F = jnp.array(forbidden, jnp.int32)
  return (ids_T[None, :] != forbidden_F[:, None]).all(0)


def bits(words_RxU: Array, ids_T: Array) -> Array:
  """Bool [R, T]: bit `id % 32` of each row's word `id // 32`."""
  words_RxT = jnp.take(words_RxU, ids_T // 32, axis=1)
  return (words_RxT >> (ids_T % 32).astype(jnp.uint32)[None, :]) & 1 > 0


def among(ids_T: Array, ids: tuple[int, ...]) -> Array:
  """Bool, of any shape: which are one of `ids`. Two comparisons for each run of consecutive ones,
  and no array of them, which a kernel could not capture."""
  among_T = jnp.zeros_like(ids_T, dtype=bool)
  for start in sorted(set(ids) - {i + 1 for i in ids}):
    end = next(i for i in range(start + 1, start + len(ids) + 1) if i not in ids)
    among_T |= (ids_T >= start) & (ids_T < end)
  return among_T


def first_allowed(vocab: int, forbidden: tuple[int, ...]) -> int:
  """The lowest id that is not forbidden: what a row without any finite logit is given."""
  return next(i for i in range(vocab) if i not in forbidden)


def logits(
  hidden_RxD: Array,
  unembed_TxD: Array,
  soft_cap: float | None,
  divide_Rx1: Array | None = None,
) -> Array:
  """Float32 [R, T], accumulated in float32 whatever the inputs are; capped, then divided."""
  z_RxT = precision.float32_product("rd,td->rt", hidden_RxD, unembed_TxD)
  if soft_cap is not None:
    z_RxT = soft_cap * jnp.tanh(z_RxT / soft_cap)
  return z_RxT if divide_Rx1 is None else z_RxT / divide_Rx1


def at_ids(x_RxT: Array, id_RxJ: Array, start: Array | int = 0) -> tuple[Array, Array]:
  """Whether each row's ids lie in the tile, and their values there (anything if they do not)."""
  offset_RxJ = id_RxJ - start
  inside_RxJ = (offset_RxJ >= 0) & (offset_RxJ < x_RxT.shape[1])
  return inside_RxJ, jnp.take_along_axis(x_RxT, jnp.where(inside_RxJ, offset_RxJ, 0), axis=1)


def at_id(x_RxT: Array, id_R: Array, start: Array | int = 0) -> tuple[Array, Array]:
  """`at_ids` of one id a row."""
  inside_Rx1, value_Rx1 = at_ids(x_RxT, id_R[:, None], start)
  return inside_Rx1[:, 0], value_Rx1[:, 0]


def check(
  op: str,
  hidden_RxD: Array,
  unembed_VxD: Array,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
) -> None:
  """Raises ValueError for what no implementation could make sense of."""
  if hidden_RxD.ndim != 2 or unembed_VxD.ndim != 2 or hidden_RxD.shape[1] != unembed_VxD.shape[1]:
    raise ValueError(
      f"{op}: hidden {hidden_RxD.shape} and unembed {unembed_VxD.shape} must be [R, D] and [V, D]"
    )
  vocab = unembed_VxD.shape[0]
  check_ids(op, "forbidden", forbidden, vocab)
  if len(set(forbidden)) == vocab:
    raise ValueError(f"{op}: all {vocab} ids are forbidden, so none is left to choose")
  if soft_cap is not None and not soft_cap > 0:
    raise ValueError(f"{op}: {soft_cap=} must be positive (None: off)")


def check_ids(op: str, name: str, ids: tuple[int, ...], vocab: int) -> None:
  """Raises ValueError for ids that do not exist."""
  unknown = [i for i in ids if not 0 <= i < vocab]
  if unknown:
    raise ValueError(f"{op}: {name} ids {unknown} must lie in [0, {vocab})")


def check_per_row(op: str, name: str, ids_R: Array, rows: int) -> None:
  """Raises ValueError unless `ids_R` is one integer a row."""
  if ids_R.shape != (rows,) or not jnp.issubdtype(ids_R.dtype, jnp.integer):
    raise ValueError(
      f"{op}: {name} must be an integer for each of {rows} rows, not {ids_R.dtype}{ids_R.shape}"
    )


def check_number_per_row(op: str, name: str, x_R: Array, rows: int) -> None:
  """Raises ValueError unless `x_R` is one float32 a row."""
  if x_R.shape != (rows,) or x_R.dtype != jnp.float32:
    raise ValueError(
      f"{op}: {name} must be a float32 for each of {rows} rows, not {x_R.dtype}{x_R.shape}"
    )


def check_ids_per_row(op: str, name: str, id_RxJ: Array, rows: int) -> None:
  """Raises ValueError unless `id_RxJ` holds integers, equally many a row."""
  if id_RxJ.ndim != 2 or id_RxJ.shape[0] != rows or not jnp.issubdtype(id_RxJ.dtype, jnp.integer):
    raise ValueError(f"{op}: {name} must be integers [{rows}, J], not {id_RxJ.dtype}{id_RxJ.shape}")
