"""Kernels of queries, keys and values laid with heads before inputs: the same numbers."""

import jax
import numpy as np

from dlm.models import layouts
from dlm.models.quantised import quantise, quantised
from tests.dlm.models.small import SMALL, canvas_logits, init, random_tokens


def untouched(params, of):
  return all(jax.tree.leaves(jax.tree.map(lambda own, same: own is same, params, of)))


def test_only_order_in_memory_changes(monkeypatch):
  params, tokens_BxL = init(SMALL), random_tokens(2, 6)
  assert untouched(layouts.laid(params), params)
  monkeypatch.setattr(layouts, "BACKEND", "cpu")
  held = layouts.laid(params)
  moved = {
    path[-2].key: leaf.format.layout.major_to_minor
    for path, leaf in jax.tree_util.tree_leaves_with_path(held)
    if leaf.format.layout.major_to_minor != tuple(range(leaf.ndim))
  }
  assert moved == dict.fromkeys(("query", "key", "value"), (0, 2, 1, 3))
  jax.tree.map(np.testing.assert_array_equal, held, params)
  jitted = jax.jit(lambda params: canvas_logits(SMALL, params, tokens_BxL))
  assert jitted.lower(held).compile().input_formats[0][0] == jax.tree.map(
    lambda leaf: leaf.format, held
  )
  np.testing.assert_allclose(jitted(held), jitted(params), rtol=1e-5, atol=1e-5)


def test_codes_stay_as_they_are(monkeypatch):
  monkeypatch.setattr(layouts, "BACKEND", "cpu")
  params = quantised(init(SMALL), quantise("int8"))
  assert untouched(layouts.laid(params), params)
