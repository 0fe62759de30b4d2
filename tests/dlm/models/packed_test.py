"""Keys and values in few bits: what is read is near what was written, and bytes fall."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, bind, packed
from dlm.types import CacheFormat

SLOTS, GROUP = 40, 16  # the last group reaches past the canvas
SIZES = dict(layers=2, slots=SLOTS, kv_heads=2, head_dim=16, dtype=jnp.float32)
FORMATS = [CacheFormat(2, GROUP), CacheFormat(4, GROUP), CacheFormat(8)]
# Row 0 writes the slots of the second group, row 1 all but the last four, row 2 none of them.
SLOT = np.broadcast_to(np.arange(SLOTS), (3, SLOTS))
WRITE = np.stack([(SLOT[0] >= 16) & (SLOT[0] < 32), SLOT[0] < 36, SLOT[0] < 0])
TARGET = np.where(WRITE, SLOT, SLOTS)
NEW = np.random.default_rng(0).normal(size=(3, SLOTS, 2, 16)).astype(np.float32) + 3


@functools.partial(jax.jit, static_argnums=(0, 1))
def written(format, values, new, target):
  """Both layers of a store after the second was written twice, first with other numbers."""
  store = packed.empty(format, values=values, batch=len(new), **SIZES)
  store = store.put(-7 * new, jnp.int32(1), target).put(new, jnp.int32(1), target)
  return store.read(jnp.int32(0)), store.read(jnp.int32(1))


@pytest.mark.parametrize("values", [False, True], ids=["keys", "values"])
@pytest.mark.parametrize("format", FORMATS, ids=["2", "4", "8"])
def test_what_is_read_is_within_half_a_step_of_what_was_written(format, values):
  other, read = jax.device_get(written(format, values, NEW, TARGET))
  assert not other.any(), "the other layer holds nothing"
  for row in range(3):
    own, got = NEW[row][WRITE[row]], read[row][WRITE[row]]
    if format.bits == 8:
      step = np.abs(own).max(-1, keepdims=True) / 127
    elif values:
      step = np.ptp(own, axis=-1, keepdims=True) / (2**format.bits - 1)
    else:  # by channel over the slots of the group that are written
      parts = [own[i : i + GROUP] for i in range(0, len(own), GROUP)]
      steps = [np.ptp(x, axis=0, keepdims=True).repeat(len(x), 0) for x in parts]
      step = np.concatenate(steps or [own]) / (2**format.bits - 1)
    assert (np.abs(got - own) <= step / 2 + 1e-5).all()
  assert not read[2].any(), "a row that writes nothing keeps what it has"


WAITS = CacheFormat(4, 32, 28)
LAYERS = bind(ModelConfig(vocab=9, width=16, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=8))


@jax.jit
def behind_a_residual(params, tokens_BxL):
  """Two windows, of which row 1's second makes a group whole; a third over that, and over numbers.

  Row 0 has written 48 slots by then, row 1 36; 32 of each are codes.
  """
  batch, slots = tokens_BxL.shape

  def over(cache, first, width, **written):
    slot_BxW = jnp.array(first)[:, None] + jnp.arange(width)[None, :]
    return LAYERS(
      params,
      jnp.take_along_axis(tokens_BxL, slot_BxW, axis=1),
      slot_BxW=slot_BxW,
      mask=masks.Causal()(slot_BxW, slots),
      cache=cache,
      **written,
    )

  cache = LAYERS.empty_cache(batch, slots, WAITS)
  for first, width, final in (([0, 0], 40, [40, 28]), ([40, 28], 8, [48, 36])):
    slot_BxW = jnp.array(first)[:, None] + jnp.arange(width)[None, :]
    write_BxW, final_B = slot_BxW < jnp.array(final)[:, None], jnp.array(final)
    cache = over(cache, first, width, write_BxW=write_BxW, final_B=final_B).cache

  def numbers(stored):
    wide = jnp.stack([stored.read(jnp.int32(layer)) for layer in range(2)])
    there = jnp.arange(slots) % WAITS.recent
    is_code = (jnp.arange(slots)[None, :] < cache.coded_B[:, None])[None, :, :, None, None]
    return jnp.where(is_code, wide, stored.recent[:, :, there])

  k, v = numbers(cache.k_YxBxSxKxH), numbers(cache.v_YxBxSxKxH)
  plain = cache.replace(k_YxBxSxKxH=k, v_YxBxSxKxH=v, coded_B=None)
  hidden = [over(each, [48, 36], 8).head.hidden_BxAxD for each in (cache, plain)]
  return cache.coded_B, cache.filled_BxS.sum(-1), (k, v), hidden


def test_what_waits_for_its_group_is_read_as_it_is():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 9, (2, 72))
  params = LAYERS.init(jax.random.key(0))
  coded, filled, (k, v), (own, plain) = jax.device_get(behind_a_residual(params, tokens))
  assert coded.tolist() == [32, 32] and filled.tolist() == [48, 36]
  np.testing.assert_allclose(own, plain, atol=1e-5)
  levels = [[len(np.unique(x[0, row, :32, 0, 3])) for x in (k, v)] for row in (0, 1)]
  assert levels[0][0] <= 16 and levels[1][0] <= 16, "keys of four bits in a channel of a group"
  other = tokens.copy()
  other[0, 41] = (other[0, 41] + 1) % 9  # one that waits
  changed = jax.device_get(behind_a_residual(params, other))[3][0]
  assert np.abs(changed[0] - own[0]).max() > 1e-3
  np.testing.assert_array_equal(changed[1], own[1], "the other row")


@pytest.mark.parametrize("format", FORMATS[:1], ids=["2"])
def test_a_row_is_kept_the_same_whatever_is_beside_it(format):
  beside = NEW.copy()
  beside[1:] *= 100
  for values in (False, True):
    own, other = (np.asarray(written(format, values, x, TARGET)[1])[0] for x in (NEW, beside))
    np.testing.assert_array_equal(own, other)


def test_a_few_rows_at_a_time_are_as_all_at_once(monkeypatch):
  monkeypatch.setattr(packed, "AT_ONCE", SLOTS)
  few = jax.jit(lambda *of: written.__wrapped__(FORMATS[0], True, *of))  # traced anew
  assert "while" in few.lower(NEW, TARGET).as_text()
  together = written(FORMATS[0], True, NEW, TARGET)[1]
  np.testing.assert_array_equal(few(NEW, TARGET)[1], together)


@pytest.mark.parametrize(
  "format,share",
  [
    (CacheFormat(2, 32), 0.19),
    (CacheFormat(4, 32), 0.32),
    (CacheFormat(8), 0.51),
    (CacheFormat(2, 32, 28), 0.22),
  ],
)
def test_bytes_fall(format, share):
  model = bind(ModelConfig(vocab=9, width=8, layers=2, heads=4, kv_heads=4, head_dim=128, mlp=8,
                           dtype="bfloat16"))  # fmt: skip

  empty = jax.jit(functools.partial(model.empty_cache, 2, 1024, format))
  found = empty.lower().compile().memory_analysis().output_size_in_bytes
  plain = 2 * 2 * (2 * 2 * 1024 * 4 * 128)  # keys and values in bfloat16
  assert share - 0.015 < found / plain < share
