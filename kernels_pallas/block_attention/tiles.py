"""Which tiles of keys a tile of queries sees at all, and which of them entirely.

The tables are exact: XLA reduces the dense mask to tiles in one fused pass, once for all layers,
and never writes it. Nobody sees the keys that fill up the last tile.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.block_attention.spec import Heads, Keys, Mask, segment_of

Array = jax.Array

NOWHERE = jnp.iinfo(jnp.int32).min  # the slot of a key that is dead or padding: in no range


class Tiles(NamedTuple):
  queries: int
  keys: int


class TileTable(NamedTuple):
  """For each (row, tile i) the tiles j that it meets, ascending. Flat: SMEM pads the last axis.

  An entry is 2 j + 1 where i sees all of j, else 2 j; past the count the last is repeated, so that
  steps that do nothing load nothing.
  """

  entry: Array  # int32 [B * I * J]
  count: Array  # int32 [B * I]
  most: Array  # int32 scalar, the largest count and at least 1: the steps of the kernel's grid


def choose(window: int, keys: int, heads: Heads, *, cached: bool) -> Tiles:
  """Tiles that keep the matrix unit busy and fit into VMEM.

  A query of the window adds a row for each head of its group. Cached keys are loaded with all their
  heads at once, so all query heads have rows in the tile, and key heads share its length.
  """
  rows = 4096 // heads.queries if cached else 512 * heads.keys // heads.queries
  length = min(max(4096 // heads.keys, 128), 512) if cached else 512
  return Tiles(_fit(window, max(rows // 128 * 128, 128)), _fit(keys, length // 128 * 128))


def _fit(size: int, most: int) -> int:
  return min(round_up(size, 16), most)  # bfloat16 packs 16 rows; more than one tile: 128 lanes


def round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def pack_queries(mask: Mask, tile: int) -> Array:
  """Int32 [B, C, W]: R rows of lo, R of hi, and one of segments if there are any."""
  rows = [mask.lo_BxWxR.swapaxes(1, 2), mask.hi_BxWxR.swapaxes(1, 2)]
  if mask.q_segment_BxW is not None:
    rows.append(mask.q_segment_BxW[:, None])
  q_BxCxW = jnp.concatenate(rows, axis=1).astype(jnp.int32)
  # The last query once more: it adds no tile, and takes from none that it is seen entirely.
  return jnp.pad(q_BxCxW, ((0, 0), (0, 0), (0, -q_BxCxW.shape[2] % tile)), mode="edge")


def pack_keys(mask: Mask, keys: Keys, tile: int) -> Array:
  """Int32 [B, D, S]: one row of slots, and one of segments if there are any."""
  slot_BxS = keys.slot_BxS
  if keys.live_BxS is not None:
    slot_BxS = jnp.where(keys.live_BxS, slot_BxS, NOWHERE)
  rows = [slot_BxS[:, None]]
  if mask.q_segment_BxW is not None:
    rows.append(segment_of(mask, keys)[:, None])
  k_BxDxS = jnp.concatenate(rows, axis=1).astype(jnp.int32)
  extra = -k_BxDxS.shape[2] % tile
  return jnp.pad(k_BxDxS, ((0, 0), (0, 0), (0, extra)), constant_values=NOWHERE)


def sees(queries: Sequence[Array], keys: Sequence[Array]) -> Array:
  """Whether queries see keys, given the packed rows one by one, as shapes that broadcast."""
  slot, *key_segment = keys
  ranges = len(queries) // 2
  bounds = zip(queries[:ranges], queries[ranges : 2 * ranges], strict=True)
  seen = functools.reduce(operator.or_, [(lo <= slot) & (slot < hi) for lo, hi in bounds])
  for segment in key_segment:
    seen &= queries[-1] == segment
  return seen


def visible_tiles(q_BxCxW: Array, k_BxDxS: Array, tiles: Tiles) -> tuple[Array, Array]:
  """Bool [B, I, J], of packed rows: does tile i see any key of tile j? All its queries all keys?"""
  batch, _, window = q_BxCxW.shape
  seen_BxWxS = sees(
    [row[:, :, None] for row in q_BxCxW.swapaxes(0, 1)],
    [row[:, None, :] for row in k_BxDxS.swapaxes(0, 1)],
  )
  seen = seen_BxWxS.reshape(batch, window // tiles.queries, tiles.queries, -1, tiles.keys)
  return seen.any((2, 4)), seen.all((2, 4))


def table(some_BxIxJ: Array, all_BxIxJ: Array) -> TileTable:
  count_BxI = some_BxIxJ.sum(-1, dtype=jnp.int32)
  order = jnp.argsort(~some_BxIxJ, axis=-1, stable=True)
  step = jnp.arange(some_BxIxJ.shape[2], dtype=jnp.int32)[None, None]
  last = jnp.maximum(count_BxI - 1, 0)[:, :, None]
  order = jnp.take_along_axis(order, jnp.minimum(step, last), axis=-1)
  entry = 2 * order + jnp.take_along_axis(all_BxIxJ, order, axis=-1)
  return TileTable(
    entry.reshape(-1).astype(jnp.int32), count_BxI.reshape(-1), jnp.maximum(count_BxI.max(), 1)
  )
