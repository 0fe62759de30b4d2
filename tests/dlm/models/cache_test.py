"""A cache changes what is computed, never what comes out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import MoeConfig
from dlm.models import cache as kv_cache
from dlm.types import KVCache
from tests.dlm.models.small import SMALL, canvas_logits, dense_logits, init, random_tokens, variant

LENGTH = 12
MOE = MoeConfig(experts=4, per_token=2, mlp=8, shared=8, dense_layers=1)


def windows(start_B, width: int):
  return jnp.asarray(start_B, jnp.int32)[:, None] + jnp.arange(width, dtype=jnp.int32)[None]


@functools.partial(jax.jit, static_argnames=("model", "rule"))
def step(model, params, cache, tokens_BxL, slot_BxW, rule, write_BxW):
  slots = cache.filled_BxS.shape[1]
  inputs_BxW = jnp.take_along_axis(tokens_BxL, jnp.minimum(slot_BxW, LENGTH - 1), axis=1)
  out = model(
    params, inputs_BxW, slot_BxW=slot_BxW, mask=rule(slot_BxW, slots), cache=cache,
    write_BxW=write_BxW,
  )  # fmt: skip
  return dense_logits(out.head), out.cache


@jax.jit
def poison(cache: KVCache) -> KVCache:
  """NaN wherever nothing was written."""
  filled = cache.filled_BxS[None, :, :, None, None]
  return cache.replace(
    k_YxBxSxKxH=jnp.where(filled, cache.k_YxBxSxKxH, jnp.nan),
    v_YxBxSxKxH=jnp.where(filled, cache.v_YxBxSxKxH, jnp.nan),
  )


@pytest.mark.parametrize(
  ("rule", "widths"),
  [
    pytest.param(masks.BlockCausal(4), (4, 4, 4), id="block by block"),
    pytest.param(masks.BlockCausal(4), (8, 4), id="two blocks at once"),
    pytest.param(masks.BlockCausal(2), (6, 2, 4), id="windows of different size"),
    pytest.param(masks.Causal(), (1, 5, 2, 4), id="causal"),
  ],
)
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"qk_norm": True, "kv_heads": 4, "qkv_bias": True},
    pytest.param({"layers": 3, "moe": MOE, "rotary_dim": 2}, id="experts"),
  ],
)
def test_cached_logits_equal_uncached(rule, widths, changes):
  model = variant(**changes)
  params, tokens = init(model), random_tokens(2, LENGTH)
  want = canvas_logits(model, params, tokens, rule)
  cache, start = poison(model.empty_cache(2, LENGTH + 3)), 0
  for width in widths:
    slot = windows([start, start], width)
    logits, cache = step(model, params, cache, tokens, slot, rule, jnp.ones(slot.shape, bool))
    np.testing.assert_allclose(logits, want[:, start : start + width], atol=1e-5)
    cache, start = poison(cache), start + width
  np.testing.assert_array_equal(cache.filled_BxS[0], np.arange(LENGTH + 3) < LENGTH)


def test_rows_stand_at_different_blocks():
  """Row 0 re-denoises block 1 while row 1 is at block 2; finished slots hold what they held."""
  rule, params, tokens = masks.BlockCausal(4), init(SMALL), random_tokens(2, 12)
  want = canvas_logits(SMALL, params, tokens, rule)
  slot = windows([0, 0], 8)
  keep = slot < jnp.array([[4], [8]])
  _, cache = step(SMALL, params, SMALL.empty_cache(2, 12), tokens, slot, rule, keep)
  np.testing.assert_array_equal(cache.filled_BxS.sum(1), [4, 8])
  nothing = jnp.zeros((2, 4), bool)
  logits, after = step(SMALL, params, poison(cache), tokens, windows([4, 8], 4), rule, nothing)
  np.testing.assert_allclose(logits[0], want[0, 4:8], atol=1e-5)
  np.testing.assert_allclose(logits[1], want[1, 8:12], atol=1e-5)
  np.testing.assert_array_equal(after.filled_BxS, cache.filled_BxS)


def test_the_window_overlays_its_own_slots():
  """Full attention: stale keys under the window are replaced by the window's, not counted twice."""
  rule, params, tokens = masks.Full(), init(SMALL), random_tokens(1, LENGTH)
  slot = windows([0], LENGTH)
  all_of_it = jnp.ones(slot.shape, bool)
  _, cache = step(SMALL, params, SMALL.empty_cache(1, LENGTH), tokens, slot, rule, all_of_it)
  changed = (tokens + 1) % 23
  again, _ = step(SMALL, params, cache, changed, slot, rule, all_of_it)
  np.testing.assert_allclose(again, canvas_logits(SMALL, params, changed, rule), atol=1e-5)
  # A window in the middle sees its own new keys and the others' old ones: one layer shows it.
  one = variant(layers=1)
  params = init(one)
  _, cache = step(one, params, one.empty_cache(1, LENGTH), tokens, slot, rule, all_of_it)
  mixed = tokens.at[:, 4:8].set(changed[:, 4:8])
  got, _ = step(one, params, cache, mixed, windows([4], 4), rule, jnp.zeros((1, 4), bool))
  np.testing.assert_allclose(got, canvas_logits(one, params, mixed, rule)[:, 4:8], atol=1e-5)


def test_a_window_that_is_all_there_is_of_its_rows_reads_no_cache():
  rule, params, tokens = masks.Full(), init(SMALL), random_tokens(2, LENGTH)
  want = canvas_logits(SMALL, params, tokens, rule)
  slot = windows([0, 0], LENGTH)
  keep = slot < jnp.array([[4], [LENGTH]])
  empty = SMALL.empty_cache(2, LENGTH)
  logits, kept = step(SMALL, params, empty, tokens, slot, rule, keep)
  unread = poison(empty).replace(filled_BxS=jnp.ones((2, LENGTH), bool), read=False)
  alone, written = step(SMALL, params, unread, tokens, slot, rule, keep)
  np.testing.assert_allclose(alone, want, atol=1e-5)
  np.testing.assert_array_equal(alone, logits)
  held = np.asarray(kept.filled_BxS)
  np.testing.assert_array_equal(written.k_YxBxSxKxH[:, held], kept.k_YxBxSxKxH[:, held])
  assert np.isnan(written.v_YxBxSxKxH[:, ~held]).all() and written.filled_BxS.all()


def test_padding_of_the_window_beyond_the_canvas_is_harmless():
  rule, params, tokens = masks.BlockCausal(4), init(SMALL), random_tokens(1, 12)
  slot = windows([8], 8)  # slots 12..15 do not exist
  empty = SMALL.empty_cache(1, 12)
  padded, cache = step(SMALL, params, empty, tokens, slot, rule, jnp.ones((1, 8), bool))
  alone, _ = step(SMALL, params, empty, tokens, slot[:, :4], rule, jnp.ones((1, 4), bool))
  np.testing.assert_allclose(padded[:, :4], alone, atol=1e-5)
  np.testing.assert_array_equal(cache.filled_BxS[0], np.arange(12) >= 8)


def test_a_query_that_sees_nothing_gives_no_nan():
  """Neither forward nor backward, cache poisoned; its attention adds 0."""
  params, tokens = init(SMALL), random_tokens(1, 12)
  slot = windows([4], 4)
  blind = masks.within(masks.Full()(slot, 12), jnp.array([0]))

  @jax.jit
  def hidden(params):
    cache = poison(SMALL.empty_cache(1, 12))
    out = SMALL(params, tokens[:, 4:8], slot_BxW=slot, mask=blind, cache=cache)
    return out.head.hidden_BxAxD

  grads = jax.jit(jax.grad(lambda p: hidden(p).sum()))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  deaf = {**params, "layers": {**params["layers"]}}
  deaf["layers"]["attention"] = jax.tree.map(jnp.zeros_like, params["layers"]["attention"])
  np.testing.assert_array_equal(hidden(params), hidden(deaf))


def test_write_touches_only_what_it_is_told():
  rng = np.random.default_rng(0)
  shape = (2, 2, 6, 1, 3)
  cache = KVCache(
    k_YxBxSxKxH=jnp.asarray(rng.normal(size=shape), jnp.float32),
    v_YxBxSxKxH=jnp.asarray(rng.normal(size=shape), jnp.float32),
    filled_BxS=jnp.asarray([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], bool),
  )
  k, v = (jnp.asarray(rng.normal(size=(2, 2, 3, 1, 3)), jnp.float32) for _ in range(2))
  slot = jnp.array([[1, 2, 3], [5, 0, 6]], jnp.int32)  # 6 is beyond the last slot
  ask = jnp.array([[1, 0, 1], [1, 0, 1]], bool)
  target = kv_cache.targets(slot, ask, 6)
  after_k, after_v = stored = cache.k_YxBxSxKxH, cache.v_YxBxSxKxH
  for layer in range(2):
    after_k, after_v = stored = kv_cache.put(stored, (k[layer], v[layer]), layer, target)

  want_k, want_v = np.array(cache.k_YxBxSxKxH), np.array(cache.v_YxBxSxKxH)
  for row, w, s in ((0, 0, 1), (0, 2, 3), (1, 0, 5)):
    want_k[:, row, s], want_v[:, row, s] = k[:, row, w], v[:, row, w]
  np.testing.assert_array_equal(after_k, want_k)
  np.testing.assert_array_equal(after_v, want_v)
  filled = kv_cache.filled(cache.filled_BxS, target)
  np.testing.assert_array_equal(filled, [[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]])


def test_writing_in_a_loop_copies_no_cache():
  cache = kv_cache.empty(
    layers=2, batch=2, slots=4096, kv_heads=2, head_dim=8, dtype=jnp.dtype("float32")
  )
  fresh = (jnp.ones((2, 4, 2, 8), jnp.float32),) * 2

  def fill(cache):
    def body(carry):
      turn, stored = carry
      target = windows([0, 4], 4) + 4 * turn
      return turn + 1, kv_cache.put(stored, fresh, turn % 2, target)

    stored = cache.k_YxBxSxKxH, cache.v_YxBxSxKxH
    return jax.lax.while_loop(lambda carry: carry[0] < 8, body, (0, stored))[1]

  memory = jax.jit(fill, donate_argnums=0).lower(cache).compile().memory_analysis()
  assert memory.temp_size_in_bytes < cache.k_YxBxSxKxH.nbytes / 4


def test_a_second_stack_of_layers_copies_no_cache():
  """Both stacks read their layers out of the one cache."""
  model = variant(layers=16, moe=dataclasses.replace(MOE, dense_layers=8))
  params = jax.eval_shape(model.init, jax.random.key(0))
  cache = jax.eval_shape(lambda: model.empty_cache(2, 4096))
  slot = windows([0, 4], 4)

  @jax.jit
  def hidden(params, cache):
    mask = masks.Full()(slot, 4096)
    return model(params, slot, slot_BxW=slot, mask=mask, cache=cache).head.hidden_BxAxD

  memory = hidden.lower(params, cache).compile().memory_analysis()
  one_stack = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)) / 2
  assert memory.temp_size_in_bytes < one_stack
