"""The tables of visible tiles against the dense mask, and how many tiles each mask leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from kernels_pallas.block_attention import Keys, Mask, tpu, visible
from kernels_pallas.block_attention.spec import Heads
from kernels_pallas.block_attention.tiles import Tiles

L = 512
TILES = Tiles(queries=32, keys=64)  # 16 x 8 of them
SLOT_1xL = jnp.arange(L, dtype=jnp.int32)[None]
# Documents of 200, 96 and 88 tokens, then padding, which sees itself.
SEGMENT_1xL = jnp.repeat(jnp.array([1, 2, 3, 0]), jnp.array([200, 96, 88, 128]))[None]

# Mask, and of its 128 tiles those that any query sees, and those that all of their queries see.
MASKS = {
  "full": (masks.Full()(SLOT_1xL, L), 128, 128),
  "causal": (masks.Causal()(SLOT_1xL, L), 72, 56),
  "block_causal": (masks.BlockCausal(64)(SLOT_1xL, L), 72, 72),
  "context": (masks.BlockCausal(32, context=128)(SLOT_1xL, L), 36, 22),
  "noisy_clean": (masks.noisy_clean(1, L // 2, 32), 44, 28),
  "segments": (masks.in_segments(masks.Full()(SLOT_1xL, L), SEGMENT_1xL), 48, 28),
  "padding": (masks.within(masks.Full()(SLOT_1xL, L), jnp.array([100])), 32, 16),
  "nothing": (masks.within(masks.Full()(SLOT_1xL, L), jnp.array([0])), 0, 0),
}


def prepare(mask, keys, tiles=TILES):
  return tpu.prepare(mask, [keys], Heads(1, 1), tiles=tiles).parts[0]


def met(table, rows, columns):
  """Bool [rows, columns] twice: tiles in the table, and those marked as seen entirely."""
  some, whole = np.zeros((2, rows, columns), bool)
  entries = np.asarray(table.entry).reshape(rows, columns)
  for row, (entry, count) in enumerate(zip(entries, np.asarray(table.count), strict=True)):
    tile, entire = entry // 2, entry % 2 == 1
    assert (np.diff(tile[:count]) > 0).all(), "ascending, each once"
    assert (tile[count:] == tile[max(count - 1, 0)]).all(), "no new tile after the last"
    some[row, tile[:count]] = True
    whole[row, tile[:count]] = entire[:count]
  assert int(table.most) == max(1, np.asarray(table.count).max())
  return some, whole


@pytest.mark.parametrize("name", MASKS)
def test_only_visible_tiles_are_met(name):
  mask, some, whole = MASKS[name]
  sight = prepare(mask, Keys(SLOT_1xL))
  seen = np.asarray(visible(mask, Keys(SLOT_1xL)))[0].reshape(16, 32, 8, 64)
  expected = seen.any((1, 3)), seen.all((1, 3))
  np.testing.assert_array_equal(met(sight.keys_of, 16, 8), expected)
  np.testing.assert_array_equal(met(sight.queries_of, 8, 16), [x.T for x in expected])
  assert (expected[0].sum(), expected[1].sum()) == (some, whole)


def test_a_decoding_window_meets_only_live_tiles():
  """A window of 5 at slots 300 .. 304; of 1000 slots of the cache the first 300 are filled."""
  slot_1xW = jnp.arange(300, 305, dtype=jnp.int32)[None]
  key_1xS = jnp.arange(1000, dtype=jnp.int32)[None]
  mask = masks.Full()(slot_1xW, 1000)
  sight = prepare(Mask(mask.lo_BxWxR, mask.hi_BxWxR), Keys(key_1xS, key_1xS < 300), Tiles(16, 128))
  some, whole = met(sight.keys_of, 1, 8)
  np.testing.assert_array_equal(some[0], [True] * 3 + [False] * 5)
  # 300 = 2 * 128 + 44. Queries that only fill up the tile of 16 do not make it partial.
  np.testing.assert_array_equal(whole[0], [True] * 2 + [False] * 6)


def test_keys_need_not_be_in_order():
  rng = np.random.default_rng(0)
  key_2xS = jnp.asarray(np.stack([rng.permutation(L), rng.permutation(L)]), jnp.int32)
  lo_2xWx2 = jnp.asarray(rng.integers(0, L, (2, 64, 2)), jnp.int32)
  hi_2xWx2 = lo_2xWx2 + jnp.asarray(rng.integers(-3, 6, (2, 64, 2)), jnp.int32)
  sight = prepare(Mask(lo_2xWx2, hi_2xWx2), Keys(key_2xS), Tiles(8, 16))
  seen = visible(Mask(lo_2xWx2, hi_2xWx2), Keys(key_2xS))
  seen = np.asarray(seen).reshape(16, 8, 32, 16)
  some, _ = met(sight.keys_of, 16, 32)
  np.testing.assert_array_equal(some, seen.any((1, 3)))
  assert 0 < some.sum() < some.size
