"""What a DFlash drafter is shown, and what it is asked. Its loss: tests/conformance/rl_2026."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import DFlash
from dlm.types import Batch
from kernels_pallas.block_attention import Keys, visible

MASK, BLOCK = 99, 3
SEGMENT = np.array([[1] * 6 + [2] * 5 + [0], [1] * 2 + [0] * 10])
POSITION = np.array([[*range(6), *range(5), 0], [*range(12)]])


def batch_of() -> Batch:
  tokens = jnp.arange(24).reshape(2, 12)
  noisable = jnp.asarray(SEGMENT > 0).at[0, :2].set(False)
  return Batch(tokens, noisable, jnp.asarray(SEGMENT), jnp.asarray(POSITION))


def test_blocks_lie_within_a_document_and_see_what_precedes_them():
  """The second row has no place for a block: it is asked nothing, and all of it stays finite."""
  noisy = jax.jit(DFlash(MASK, BLOCK, anchors=20, gamma=2.0).corrupt)(
    jax.random.key(0), batch_of(), 0
  )
  places, width = [2, 3, 6, 7, 8], noisy.inputs_BxW.shape[1]
  assert width == 12 * BLOCK  # never more blocks than the row has slots
  weight = np.asarray(noisy.weight_BxL).reshape(2, -1, BLOCK)
  np.testing.assert_allclose(weight[0, :5], [[0, 1, np.exp(-0.5)]] * 5, rtol=1e-6)
  assert not weight[0, 5:].any() and not weight[1].any()
  np.testing.assert_allclose(noisy.count_B, [5 * (1 + np.exp(-0.5)), 0], atol=2e-6)
  assert noisy.count_B[1] > 0
  key = jnp.broadcast_to(jnp.arange(12 + width), (2, 12 + width))
  seen = np.asarray(visible(noisy.mask, Keys(key)))
  for block, anchor in enumerate(places):
    row = slice(BLOCK * block, BLOCK * (block + 1))
    np.testing.assert_array_equal(noisy.inputs_BxW[0, row], [anchor, MASK, MASK])
    np.testing.assert_array_equal(noisy.targets_BxL[0, row], anchor + np.arange(BLOCK))
    np.testing.assert_array_equal(noisy.slot_BxW[0, row], POSITION[0, anchor] + np.arange(BLOCK))
    text = [slot for slot in range(anchor) if SEGMENT[0, slot] == SEGMENT[0, anchor]]
    want = [*text, *(12 + np.arange(row.start, row.stop))]
    for query in range(row.start, row.stop):
      np.testing.assert_array_equal(np.flatnonzero(seen[0, query]), want)
  assert (np.asarray(noisy.inputs_BxW)[1] == MASK).all()


def test_anchors_are_the_lowest_draws_of_those_that_fit():
  u = np.linspace(1, 0, 24).reshape(2, 12)
  noisy = DFlash(MASK, BLOCK, anchors=2).corrupt_with({"u_anchor": jnp.asarray(u)}, batch_of(), 0)
  np.testing.assert_array_equal(noisy.inputs_BxW[0, ::BLOCK], [7, 8])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"block": 1}, "block=1 must be at least 2, anchors=2 at least 1"),
    ({"anchors": 0}, "anchors=0 at least 1"),
    ({"gamma": 0.0}, "gamma=0.0 must be positive"),
    ({"prefix": 0.0}, "prefix=0.0 must be positive"),
    ({"temperature": 0.0}, "temperature=0.0 must be positive"),
  ],
)
def test_bad_values_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    DFlash(**{"mask_id": MASK, "block": BLOCK, "anchors": 2} | fields)
