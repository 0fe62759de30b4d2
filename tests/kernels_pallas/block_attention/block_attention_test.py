"""Values and gradients against float64 numpy and against autodiff of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.block_attention import Keys, Mask, Part, block_attention, prepare
from tests.kernels_pallas.block_attention import twin

TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


def normal(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def of_masks(heads, kv_heads, dim, dtype=jnp.float32):
  """A batch with one mask a row: q, part, mask, keys."""
  mask = twin.one_row_a_mask()
  batch = mask.lo_BxWxR.shape[0]
  q = normal(0, batch, twin.L, heads, dim, dtype=dtype)
  part = Part(*(normal(seed, batch, twin.L, kv_heads, dim, dtype=dtype) for seed in (1, 2)))
  keys = Keys(jnp.broadcast_to(twin.SLOT_1xL, (batch, twin.L)))
  return q, part, mask, keys


@pytest.mark.parametrize(
  ("heads", "kv_heads", "dim", "dtype"),
  [(6, 2, 16, jnp.float32), (2, 2, 32, jnp.bfloat16)],
)
def test_masks_and_groups_of_heads(attend, heads, kv_heads, dim, dtype):
  q, part, mask, keys = of_masks(heads, kv_heads, dim, dtype)
  out = attend(q, [part], mask, [keys])
  assert out.dtype == dtype
  expected = twin.attention(q, part.k, part.v, twin.visible(mask, keys))
  for name, row, truth in zip(twin.MASKS, np.asarray(out, np.float64), expected, strict=True):
    np.testing.assert_allclose(row, truth, atol=TOLERANCE[dtype], err_msg=name)
  assert not np.asarray(out[list(twin.MASKS).index("nothing")]).any()


def test_gradients(attend, first=9):
  """Of keys in two parts, of which the second is one layer of several."""
  q, part, mask, keys = of_masks(4, 2, 8)
  weight = normal(3, *q.shape)
  keys = [Keys(keys.slot_BxS[:, :first]), Keys(keys.slot_BxS[:, first:])]

  def loss(run, q, part):
    layers = (jnp.stack([0 * x, x])[:, :, first:] for x in part[:2])
    parts = [Part(*(x[:, :first] for x in part[:2])), Part(*layers, jnp.int32(1))]
    return (run(q, parts, mask, keys) * weight).sum()

  def reference(q, parts, mask, keys):
    sight = prepare(mask, keys, heads=4, kv_heads=2, implementation="reference")
    return block_attention(q, parts, sight)

  got = jax.grad(loss, argnums=(1, 2))(attend, q, part)
  expected = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)(reference, q, part)
  for name, index in zip(twin.MASKS, range(len(twin.MASKS)), strict=True):
    jax.tree.map(
      lambda x, y, row=index, name=name: np.testing.assert_allclose(
        x[row], y[row], atol=1e-5, err_msg=name
      ),
      got,
      expected,
    )
  nothing = list(twin.MASKS).index("nothing")
  assert all(not np.asarray(x[nothing]).any() for x in jax.tree.leaves(got))


def test_window_and_cache(attend, batch=3, window=5, slots=41, dim=8):
  """Slots of the window are stale in the cache, others empty; both hold NaN."""
  rng = np.random.default_rng(4)
  slot_BxW = np.stack([np.arange(36, 41), np.arange(window), np.sort(rng.permutation(41)[:5])])
  live_BxS = rng.random((batch, slots)) < 0.5
  live_BxS[np.arange(batch)[:, None], slot_BxW] = False
  live_BxS[1] = False  # this row's cache is empty
  lo = np.stack([np.full(slot_BxW.shape, 3), np.zeros_like(slot_BxW)], -1)
  hi = np.stack([np.minimum(slot_BxW // 4 * 4 + 4, slots), np.zeros_like(slot_BxW)], -1)
  hi[1, 2] = 0  # in row 1 this query, and those before slot 3 alone, see nothing
  segment_BxS = np.ones((batch, slots), np.int32)
  segment_BxS[2, 20:] = 2
  mask = Mask(
    *(jnp.asarray(x, jnp.int32) for x in (lo, hi)),
    jnp.asarray(np.take_along_axis(segment_BxS, slot_BxW, 1)),
    jnp.asarray(segment_BxS),
  )
  slot_BxS = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (batch, slots))
  keys = [Keys(jnp.asarray(slot_BxW, jnp.int32)), Keys(slot_BxS, jnp.asarray(live_BxS))]
  q = normal(5, batch, window, 6, dim)
  own = Part(*(normal(seed, batch, window, 2, dim) for seed in (6, 7)))
  stored = [np.array(normal(seed, batch, slots, 2, dim)) for seed in (8, 9)]
  for x in stored:
    x[~live_BxS] = np.nan
  layers = (jnp.stack([np.full_like(x, np.nan), x, -x]) for x in stored)
  cached = Part(*layers, jnp.int32(1))
  out = attend(q, [own, cached], mask, keys)

  seen = np.concatenate([twin.visible(mask, part) for part in keys], axis=2)
  k, v = (np.concatenate([a, b], axis=1) for a, b in zip(own[:2], stored, strict=True))
  np.testing.assert_allclose(out, twin.attention(q, k, v, seen), atol=2e-6)
  assert not seen[1, 2].any() and not np.asarray(out[1, 2]).any()


def test_large_scores_do_not_overflow(attend):
  q, part, mask, keys = of_masks(6, 2, 16)
  q *= 1e4
  expected = twin.attention(q, part.k, part.v, twin.visible(mask, keys))
  # Scores of 1e4 are known to 1e-3 in float32, and so are their weights.
  np.testing.assert_allclose(attend(q, [part], mask, [keys]), expected, atol=1e-3)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_dense_mask(implementation):
  """Only annealing asks for one: a kernel need not know it."""
  q, part, mask, keys = of_masks(2, 1, 8)
  dense = jnp.asarray(np.random.default_rng(0).random((len(twin.MASKS), twin.L, twin.L)) < 0.5)
  mask = mask.replace(dense_BxWxS=dense)
  sight = prepare(mask, [keys], heads=2, kv_heads=1, implementation=implementation)
  expected = twin.attention(q, part.k, part.v, twin.visible(mask, keys))
  np.testing.assert_allclose(block_attention(q, [part], sight), expected, atol=2e-6)


def test_mistakes_are_named():
  q, part, mask, keys = of_masks(2, 1, 8)
  with pytest.raises(ValueError, match="kv_heads=2 must divide heads=3"):
    prepare(mask, [keys], heads=3, kv_heads=2)
  with pytest.raises(ValueError, match="must both be"):
    prepare(mask.replace(hi_BxWxR=mask.hi_BxWxR[:, 1:]), [keys], heads=2, kv_heads=1)
  with pytest.raises(ValueError, match="or of neither"):
    prepare(mask.replace(k_segment_BxS=None), [keys], heads=2, kv_heads=1)
  with pytest.raises(ValueError, match="live int32"):
    bad = Keys(keys.slot_BxS, keys.slot_BxS)
    prepare(mask, [bad], heads=2, kv_heads=1)
  sight = prepare(mask, [keys], heads=2, kv_heads=1)
  with pytest.raises(ValueError, match="with a layer"):
    block_attention(q, [Part(part.k[None], part.v[None])], sight)
  with pytest.raises(ValueError, match="do not fit queries"):
    block_attention(q[:, :, :, :4], [part], sight)
