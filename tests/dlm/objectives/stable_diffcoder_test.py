"""Stable-DiffCoder's noise, against its rules said block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import StableDiffcoder
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK

# Documents of 6 and 7 tokens, whose first two are prompts, and padding: blocks 4 2 | 4 3.
SEGMENT = np.array([1] * 6 + [2] * 7 + [0] * 3)
NOISABLE = np.isin(np.arange(16), [2, 3, 4, 5, 8, 9, 10, 11, 12])
BLOCKS = [(0, 4), (4, 6), (6, 10), (10, 13)]
ROWS, WARMUP = 1000, 100


@pytest.fixture(scope="module")
def noised():
  batch = oracle.rows(np.zeros((ROWS, 16), np.int32), np.tile(SEGMENT, (ROWS, 1)))
  batch = batch.replace(noisable_BxL=jnp.asarray(np.tile(NOISABLE, (ROWS, 1))))
  objective = StableDiffcoder(MASK, 4, warmup=WARMUP)
  draws = oracle.draw(objective, 0, batch)
  corrupt = jax.jit(lambda step: objective.corrupt_with(draws, batch, step))
  u_time, u_mask = (np.asarray(draws[name]) for name in ("u_time", "u_mask"))
  return u_time, u_mask, lambda step: jax.tree.map(np.asarray, corrupt(step))


@pytest.mark.parametrize("step", [0, 40, WARMUP])
def test_every_block_follows_the_rules(noised, step):
  u_time, u_mask, corrupt = noised
  noisy = corrupt(step)
  bound = 1e-3 + 0.999 * min(step / WARMUP, 1)
  want, weight = np.zeros((ROWS, 16), bool), np.zeros((ROWS, 16))
  for row in range(ROWS):
    for first, end in BLOCKS:
      open_ = [i for i in range(first, end) if NOISABLE[i]]
      rate = min(1, max(bound * u_time[row, first], 1 / 4))
      masked = [i for i in open_ if u_mask[row, i] < rate]
      masked = masked or [min(open_, key=lambda i: u_mask[row, i])]
      want[row, masked] = True
      weight[row, masked] = 1 if step < WARMUP else 1 / rate
  np.testing.assert_array_equal(noisy.inputs_BxW[:, :16] == MASK, want)
  np.testing.assert_allclose(noisy.weight_BxL, weight, rtol=1e-5)
  np.testing.assert_array_equal(noisy.count_B, NOISABLE.sum())
  assert (noisy.inputs_BxW[:, 16:] == 0).all()


def test_what_is_masked_of_need_is_any_token_of_the_block(noised):
  noisy = noised[2](0)  # all rates are 1/4
  masked = noisy.inputs_BxW[:, 10:13] == MASK
  alone = masked[masked.sum(-1) == 1].mean(0)
  np.testing.assert_allclose(alone, 1 / 3, atol=4 * 0.47 / np.sqrt(len(masked) * 0.8))
  none = 0.75**3
  assert abs((masked.sum(-1) == 1).mean() - (none + 3 * 0.25 * 0.75**2)) < 0.05


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"warmup": -1}, r"warmup=-1 must not be negative \(0: none\)"),
    ({"warmup_from": 0.0}, r"warmup_from=0.0 must lie in \(0, 1\]"),
  ],
)
def test_mistakes_are_named(fields, words):
  with pytest.raises(ValueError, match=f"StableDiffcoder: {words}"):
    StableDiffcoder(MASK, 4, **fields)
