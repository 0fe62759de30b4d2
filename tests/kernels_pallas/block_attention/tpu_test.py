"""What only the TPU kernels have: tiles, in an order and of a size, and what they do not serve."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.block_attention import (
  Keys,
  Mask,
  Part,
  block_attention,
  prepare,
  tpu,
  tpu_forward,
)
from kernels_pallas.block_attention.spec import Heads
from kernels_pallas.block_attention.tiles import Tiles, choose
from tests.kernels_pallas import races

B, W, S = 1, 32, 24


def arrays(dtype=jnp.float32, heads=2, kv_heads=1, dim=8):
  """q, the window's part, and a cached one."""
  keys = jax.random.split(jax.random.key(0), 5)
  shapes = [(B, W, heads, dim), *[(B, W, kv_heads, dim)] * 2, *[(B, S, kv_heads, dim)] * 2]
  q, *kv = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))
  return q, Part(*kv[:2]), Part(*kv[2:])


def causal(keys, *, tiles=None, heads=2, kv_heads=1, implementation="tpu"):
  slot_BxW = jnp.broadcast_to(jnp.arange(W, dtype=jnp.int32), (B, W))
  mask = Mask(jnp.zeros((B, W, 1), jnp.int32), slot_BxW[:, :, None] + 1)
  parts = [Keys(slot_BxW), Keys(slot_BxW[:, :S], jnp.arange(S)[None] < 20)]
  if tiles is not None:
    return tpu.prepare(mask, parts[:keys], Heads(heads, kv_heads), tiles=tiles)
  return prepare(mask, parts[:keys], heads=heads, kv_heads=kv_heads, implementation=implementation)


def both_parts(**how):
  q, own, cached = arrays()
  return block_attention(q, [own, cached], causal(2, **how))


def gradients(**how):
  q, own, _ = arrays()
  sight = causal(1, **how)
  return jax.grad(lambda *x: block_attention(x[0], [x[1]], sight).sum(), argnums=(0, 1))(q, own)


@pytest.mark.parametrize("run", [both_parts, gradients])
def test_tiles_do_not_race(run):
  """Two cores share the two tiles of queries."""
  got, raced = races.seen(jax.jit(functools.partial(run, tiles=Tiles(16, 16))))
  assert raced and not any(raced)
  expected = jax.jit(functools.partial(run, implementation="reference"))()
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, expected)


def test_tiles_of_keys_in_any_order_would_race(monkeypatch):
  """The check above can fail."""
  anyhow = pltpu.CompilerParams(dimension_semantics=("parallel",) * 4)
  monkeypatch.setattr(tpu_forward, "compiler_params", lambda: anyhow)
  own = causal(1, tiles=Tiles(32, 16)).parts[0]
  steps = dataclasses.replace(own, keys_of=own.keys_of._replace(most=2))  # a number, not an array
  x = jnp.ones((B, 1, 1, W, 8))
  layer = jnp.zeros(1, jnp.int32)
  run = functools.partial(tpu_forward.forward, steps, x, x[:, 0], x[:, 0], layer, x.dtype)
  assert races.seen(run)[1] == [True]


def test_gradients_of_bfloat16_with_one_head_a_step(monkeypatch):
  monkeypatch.setattr(tpu_forward, "_ROWS", 1)
  heads = {"heads": 4, "kv_heads": 2}
  q, own, _ = arrays(jnp.bfloat16, dim=32, **heads)

  def gradients(implementation):
    sight = causal(1, implementation=implementation, **heads)

    def loss(q, part):
      return block_attention(q, [part], sight).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(q, own)

  with pltpu.force_tpu_interpret_mode():
    got = gradients("tpu")
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(gradients("reference")), strict=True):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(z, np.float32) for z in (x, y)), atol=5e-2)


def test_gradients_of_a_cache_are_left_to_others():
  q, own, cached = arrays()
  sight = causal(2)
  with pytest.raises(NotImplementedError, match="no cached keys"):
    jax.grad(lambda q: block_attention(q, [own, cached], sight).sum())(q)


def test_what_the_kernels_do_not_serve():
  q, own, _ = arrays(jnp.float16)
  with pytest.raises(NotImplementedError, match="not float16"):
    block_attention(q, [own], causal(1))
  window = jnp.zeros((1, 4, 1), jnp.int32)
  mask = Mask(window, window, dense_BxWxS=jnp.ones((1, 4, 4), bool))
  with pytest.raises(NotImplementedError, match="masks made of ranges, not a dense one"):
    prepare(mask, [Keys(window[..., 0])], heads=1, kv_heads=1, implementation="tpu")


def test_keys_of_another_number_are_refused():
  q, _, cached = arrays()
  with pytest.raises(ValueError, match=r"24 keys.*32"):
    block_attention(q, [cached], causal(1))


@pytest.mark.parametrize(
  ("window", "keys", "heads", "cached", "expected"),
  [
    (8192, 8192, Heads(32, 8), False, Tiles(128, 512)),  # training
    (8192, 8192, Heads(32, 32), False, Tiles(512, 512)),  # no groups: as many rows
    (8192, 8192, Heads(28, 4), False, Tiles(128, 512)),
    (32, 32, Heads(32, 8), False, Tiles(32, 32)),  # a decoding window, its own keys
    (5, 32768, Heads(32, 8), True, Tiles(16, 512)),  # and the cached ones
    (32, 32768, Heads(32, 32), True, Tiles(32, 128)),
    (4096, 4096, Heads(32, 8), True, Tiles(128, 512)),
  ],
)
def test_sizes_of_tiles(window, keys, heads, cached, expected):
  assert choose(window, keys, heads, cached=cached) == expected
