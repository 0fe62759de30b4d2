"""DiffusionGemma's settings and its ring of keys; the model itself is in tests/conformance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import GemmaConfig, ModelConfig, MoeConfig, bind, from_preset
from dlm.models import cache as kv_cache
from dlm.models.gemma import sliding

SMALL = ModelConfig(
  vocab=11, width=12, layers=3, heads=4, kv_heads=2, head_dim=6, mlp=10, qk_norm=True,
  moe=MoeConfig(experts=4, per_token=2, mlp=5, renormalise=True),
  gemma=GemmaConfig(full=(2,), window=4, kv_heads=1, head_dim=8),
)  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"gemma": dict(full=(1,))}, "must end with the last of layers=3"),
    ({"gemma": dict(full=(2, 1))}, "must be layers in order, each once"),
    ({"gemma": dict(window=1)}, "window=1 is too small"),
    ({"gemma": dict(kv_heads=3)}, "heads=4 must be a multiple of kv_heads=3 of gemma"),
    ({"gemma": dict(rotated=1.5)}, "rotated=1.5 in 0..1"),
    ({"moe": None}, "gemma needs moe"),
    ({"moe": MoeConfig(experts=4, per_token=2, mlp=5)}, "renormalise=True, and no other setting"),
    ({"qk_norm": False}, "qk_norm=False must be True with gemma"),
    ({"tied": False}, "tied=False must be True with gemma"),
  ],
)
def test_other_layers_are_refused(changes, match):
  if isinstance(changes.get("gemma"), dict):
    with pytest.raises(ValueError, match=match):
      dataclasses.replace(SMALL, gemma=dataclasses.replace(SMALL.gemma, **changes["gemma"]))
  else:
    with pytest.raises(ValueError, match=match):
      dataclasses.replace(SMALL, **changes)


def test_a_sliding_layer_keeps_its_window():
  """At 32k tokens the published shape needs less than a third of a plain cache, in either type."""
  model = from_preset("diffusion-gemma", vocab=262_144, dtype="bfloat16")
  cache = jax.eval_shape(functools.partial(bind(model).empty_cache, 1, 32_768))
  assert cache.k_YxBxSxKxH.shape == (5, 1, 32_768, 2, 512)
  assert cache.ring.k_YxBxSxKxH.shape == (25, 1, 1023, 8, 256)
  kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  plain = 2 * 4 * 32_768 * (5 * 2 * 512 + 25 * 8 * 256)  # on a CPU caches are of float32
  assert plain / kept > 8
  few = jax.eval_shape(functools.partial(bind(model).empty_cache, 1, 100))
  assert few.ring.slot_BxS.shape == (1, 100), "no longer than the canvas"


def test_a_ring_holds_what_came_last():
  """Rows of 5 and of 2 more tokens in a ring of 3; what is not written goes nowhere."""
  slot = jnp.array([[4, 5, 6, 7, 8], [1, 2, 9, 9, 9]])
  write = jnp.array([[True] * 5, [True, True, False, False, False]])
  target = kv_cache.ring_targets(slot, write, 3)
  np.testing.assert_array_equal(target, [[3, 3, 0, 1, 2], [1, 2, 3, 3, 3]])
  held = kv_cache.held(jnp.array([[3, 1, 2], [0, -1, -1]]), target, slot)
  np.testing.assert_array_equal(held, [[6, 7, 8], [0, 1, 2]])


def test_a_canvas_sees_itself_and_the_end_of_its_past():
  slot = jnp.arange(10)[None]
  mask = masks.Canvas(3)(slot, 9, start_B=jnp.array([5]))
  seen = sliding(mask, 4)
  own = [[i, i + 1] for i in range(5)] + [[5, 8]] * 3 + [[8, 9]] * 2
  past = [[0, i] for i in range(5)] + [[0, 5]] * 3 + [[0, 8]] * 2
  ranges = np.stack([mask.lo_BxWxR[0], mask.hi_BxWxR[0]], axis=-1)
  np.testing.assert_array_equal(ranges[:, 0], own)
  np.testing.assert_array_equal(ranges[:, 1], past)
  first = [max(0, end - 3) for _, end in past]
  np.testing.assert_array_equal(seen.lo_BxWxR[0, :, 1], first)
  np.testing.assert_array_equal(seen.lo_BxWxR[0, :, 0], [start for start, _ in own])
  with pytest.raises(ValueError, match="its masks need two ranges"):
    sliding(masks.Causal()(slot, 9), 4)


def test_inputs_without_a_level_or_with_a_place_are_refused():
  model, slot = bind(SMALL), jnp.zeros((1, 1), jnp.int32)
  mask = masks.Canvas(1)(slot, 1)
  with pytest.raises(ValueError, match="needs time_BxW"):
    model({}, slot, slot_BxW=slot, mask=mask)
  with pytest.raises(ValueError, match="takes no place_BxW"):
    model({}, slot, slot_BxW=slot, mask=mask, time_BxW=jnp.zeros((1, 1)), place_BxW=slot)
