"""The kernels for Hopper, interpreted, their tables, and what is left to others."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

from dlm import masks
from kernels_pallas.block_attention import Keys, Mask, Part, block_attention, gpu, prepare, visible
from kernels_pallas.block_attention.spec import Heads
from tests.kernels_pallas.block_attention import twin
from tests.kernels_pallas.hopper import interpret_gpu

H = 64

# XLA runs a warpgroup on each of its threads, and hangs where it has fewer.
threads = pytest.mark.skipif(
  int(os.environ.get("NPROC") or os.cpu_count()) < 8, reason="needs NPROC=8 before jax starts"
)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(jnp.bfloat16)


def slots(count, start=0):
  return np.arange(start, start + count, dtype=np.int32)[None]


def interpreted(run, *args):
  """Fails on a race between warpgroups and copies."""
  with interpret_gpu():
    result = jax.device_get(jax.jit(run)(*args))
    assert not gpu_callbacks.get_races().races_found
  return result


@threads
def test_a_window_and_a_cache(window=30, count=136, heads=6, kv_heads=2):
  """90 rows a key head: two workers. Cached keys: a tile of 128, and one that is moved back."""
  live_1xS = np.random.default_rng(0).random((1, count)) < 0.5
  live_1xS[:, :16], live_1xS[:, 100:132], live_1xS[:, 135] = True, False, True
  keys = [Keys(slots(window, 100)), Keys(slots(count), live_1xS)]
  lo_1xWx1, hi_1xWx1 = np.full((2, 1, window, 1), [[[[3]]], [[[134]]]], np.int32)
  hi_1xWx1[:, 5], hi_1xWx1[:, 6], hi_1xWx1[:, 20:] = 0, 60, 136
  segment_1xS = (slots(count) // 40 != 1).astype(np.int32)
  mask = Mask(lo_1xWx1, hi_1xWx1, np.ones((1, window), np.int32), segment_1xS)
  q, own = normal(1, 1, window, heads, H), [normal(i, 1, window, kv_heads, H) for i in (2, 3)]
  stored = [normal(i, 1, count, kv_heads, H) for i in (4, 5)]
  for x in stored:
    x[~live_1xS] = np.nan
  layers = [np.stack([np.full_like(x, np.nan), x]) for x in stored]

  def run(q, parts, mask, keys):
    sight = gpu.prepare(mask, keys, Heads(heads, kv_heads), programs=4)
    assert [part.splits for part in sight.parts] == [1, 2]
    return block_attention(q, parts, sight)

  out = interpreted(run, q, [Part(*own), Part(*layers, np.int32(1))], mask, keys)
  seen = np.concatenate([twin.visible(mask, part) for part in keys], axis=2)
  k, v = (np.concatenate([a, b], axis=1) for a, b in zip(own, stored, strict=True))
  np.testing.assert_allclose(out, twin.attention(q, k, v, seen), atol=1e-2)
  assert not seen[0, 5].any() and not out[0, 5].any()
  assert seen[0, 6].any() and not seen[0, 6, :window].any()


@threads
def test_gradients(length=160, half=80, heads=2, kv_heads=1):
  """[noisy; clean] of 80 tokens, each half a part of two tiles, of which not all are met."""
  mask = jax.tree.map(np.asarray, masks.noisy_clean(1, half, 16))
  keys = [Keys(slots(half)), Keys(slots(half, half))]
  mask = mask.replace(hi_BxWxR=np.where(slots(length)[..., None] == 70, 0, mask.hi_BxWxR))
  q, k, v = (normal(i, 1, length, n, H) for i, n in enumerate((heads, kv_heads, kv_heads)))
  weight = normal(3, 1, length, heads, H)

  def gradients(prepare):
    def loss(q, k, v, mask):
      layers = [jnp.stack([0 * x, x])[:, :, half:] for x in (k, v)]  # the second's is layer 1
      parts = [Part(k[:, :half], v[:, :half]), Part(*layers, jnp.int32(1))]
      out = block_attention(q, parts, prepare(mask, keys))
      return (out * weight).astype(jnp.float32).sum(), out

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)

  ours = gradients(functools.partial(gpu.prepare, heads=Heads(heads, kv_heads)))
  theirs = gradients(
    functools.partial(prepare, heads=heads, kv_heads=kv_heads, implementation="reference")
  )
  (_, out), got = interpreted(ours, q, k, v, mask)
  exact = (x.astype(np.float32) for x in (q, k, v))
  (_, expected), expected_grads = jax.device_get(jax.jit(theirs)(*exact, mask))
  for x, y in zip((out, *got), (expected, *expected_grads), strict=True):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(x.astype(np.float32), y, atol=1e-2 * np.abs(y).max())
  assert not out[0, 70].any() and not got[0][0, 70].any()


def test_tables_name_tiles_that_are_seen_and_first_those_seen_entirely():
  """Rows are query heads of a group, 3 for each query."""
  mask, keys = masks.BlockCausal(64)(slots(300), 300), Keys(slots(300))
  (part,) = jax.jit(lambda: gpu.prepare(mask, [keys], Heads(6, 2)))().parts
  seen = np.repeat(np.asarray(visible(mask, keys))[0], 3, axis=0)
  seen = np.pad(seen, ((0, -900 % 128), (0, 0)), mode="edge")
  seen = np.pad(seen, ((0, 0), (0, -300 % 128))).reshape(8, 128, 3, 128)
  for table, axes in ((part.keys_of, (0, 1)), (part.rows_of, (1, 0))):
    some, whole = (np.transpose(x((1, 3)), axes) for x in (seen.any, seen.all))
    assert 0 < whole.sum() < some.sum() < some.size
    orders, counts = (np.asarray(x[0]) for x in table)
    for i, (order, (entirely, met)) in enumerate(zip(orders, counts, strict=True)):
      assert set(order[:entirely]) == set(np.flatnonzero(whole[i]))
      assert set(order[:met]) == set(np.flatnonzero(some[i]))


@pytest.mark.parametrize(
  ("kind", "message", "change"),
  [
    (NotImplementedError, "heads of 64 or 128, not of 96", {"told": {"dim": 96}}),
    (NotImplementedError, "heads of 64 or 128, not of 32", {"dim": 32}),
    (NotImplementedError, "bfloat16, not float32", {"told": {"dtype": "float32"}}),
    (NotImplementedError, "bfloat16, not float32", {"dtype": jnp.float32}),
    (NotImplementedError, "100 cached keys must be a multiple of 8", {"cached": 100}),
    (NotImplementedError, "not a dense one", {"dense": True}),
    (NotImplementedError, "no cached keys", {"cached": 104}),
    (ValueError, "a part of 4 keys, where 5 were prepared for", {"keys": 5}),
  ],
)
def test_what_is_left_to_others(kind, message, change):
  how = {"dim": H, "dtype": jnp.bfloat16, "cached": 0, "keys": 4} | change
  mask, keys = masks.Full()(slots(4), 4), [Keys(slots(how["keys"]))]
  if "dense" in how:
    mask = mask.replace(dense_BxWxS=np.ones((1, 4, 4), bool))
  if how["cached"]:
    keys.append(Keys(slots(how["cached"]), np.ones((1, how["cached"]), bool)))

  def loss(x, kept):
    sight = prepare(mask, keys, heads=1, kv_heads=1, implementation="gpu", **how.get("told", {}))
    parts = [Part(x, x), *([Part(kept, kept)] if how["cached"] else [])]
    return block_attention(x, parts, sight).sum()

  shapes = ((1, count, 1, how["dim"]) for count in (4, how["cached"]))
  with pytest.raises(kind, match=message):
    jax.eval_shape(jax.grad(loss), *(jax.ShapeDtypeStruct(x, how["dtype"]) for x in shapes))
