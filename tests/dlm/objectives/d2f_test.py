"""D2F taught: what it costs, and what it learns, against plain float64 sums over whole softmaxes.

The model is the mean of the embeddings that an input sees, so that what the masks hide is seen in
every number.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import D2f, Shifted
from dlm.types import LogitHead, ModelOutput
from kernels_pallas.block_attention import Keys, visible
from tests.dlm.objectives import oracle

VOCAB, WIDTH, MASK, BLOCK = 11, 6, 10, 3
# Documents of 9 and 6 tokens whose last 7 and 4 are answers, and padding.
SEGMENT = np.array([1] * 9 + [2] * 6 + [0])
ANSWER = {1: 2, 2: 11}
LENGTH = len(SEGMENT)
NOISABLE = np.isin(np.arange(LENGTH), [*range(2, 9), *range(11, 15)])
DRAW = np.random.default_rng(0)
EMBED_VxD = DRAW.normal(size=(VOCAB, WIDTH))


@dataclasses.dataclass(frozen=True)
class Mean:
  """Of what an input sees; `params` is the unembedding."""

  def __call__(self, params, tokens_BxW, *, slot_BxW, mask, ask_BxA=None, **_):
    seen_BxWxS = visible(mask, Keys(jnp.broadcast_to(jnp.arange(LENGTH), slot_BxW.shape)))
    embed_BxSxD = jnp.asarray(EMBED_VxD, jnp.float32)[tokens_BxW]
    hidden_BxWxD = (seen_BxWxS @ embed_BxSxD) / jnp.maximum(seen_BxWxS.sum(-1, keepdims=True), 1)
    if ask_BxA is not None:
      hidden_BxWxD = jnp.take_along_axis(hidden_BxWxD, ask_BxA[..., None], axis=1)
    return ModelOutput(head=LogitHead(hidden_BxWxD, params), cache=None, aux={})


def batch_of(rows):
  tokens = DRAW.integers(0, MASK, size=(rows, LENGTH)).astype(np.int32)
  batch = oracle.rows(tokens, np.tile(SEGMENT, (rows, 1)))
  return batch.replace(noisable_BxL=jnp.asarray(np.tile(NOISABLE, (rows, 1))))


def seen_by_blocks():
  """The prompt is a block, and those of the answer begin at its end."""
  block = [(i - ANSWER.get(s, i)) // BLOCK if i >= ANSWER.get(s, i) else -1
           for i, s in enumerate(SEGMENT)]  # fmt: skip
  return np.array(block)[None, :] <= np.array(block)[:, None]


def log_softmax(logits):
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reference(ids, masked, level, own, theirs, shift):
  """The loss and its gradient in the student's unembedding."""
  same = SEGMENT[None, :] == SEGMENT[:, None]
  asked = np.maximum(np.arange(LENGTH) - shift, 0)
  total, grad = 0.0, np.zeros_like(own)
  for row in range(len(ids)):
    embed = EMBED_VxD[ids[row]]
    hidden, taught = (
      (seen @ embed / seen.sum(-1, keepdims=True))[asked]
      for seen in (same & seen_by_blocks(), same)
    )
    q, p = log_softmax(hidden @ own.T), log_softmax(taught @ theirs.T)
    weight = masked[row] / np.maximum(level[row], 0.2)
    total += (weight * (np.exp(p) * (p - q)).sum(-1)).sum()
    # The same as of the cross-entropy against the teacher's distribution.
    grad += (weight[:, None] * (np.exp(q) - np.exp(p))).T @ hidden
  return total / masked.sum(), grad / masked.sum()


@pytest.mark.parametrize("shift", [0, 1])
def test_masks_learn_what_the_teacher_says_who_sees_all_of_the_noisy_text(shift):
  objective = D2f(MASK, BLOCK, target="teacher")
  objective = Shifted(objective) if shift else objective
  assert objective.taught and "distance" in objective.not_a_likelihood()
  own, theirs = DRAW.normal(size=(2, VOCAB, WIDTH))
  batch = batch_of(5)

  @jax.jit
  def found(own, theirs):
    noisy = objective.corrupt(jax.random.key(3), batch, 0)

    def mean(own, theirs):
      sums, _ = objective.loss((Mean(), Mean()), (own, theirs), noisy)
      return sums.total / sums.count

    return noisy, jax.value_and_grad(mean, argnums=(0, 1))(own, theirs)

  noisy, (loss, (grad, none)) = found(jnp.float32(own), jnp.float32(theirs))
  ids, level = np.asarray(noisy.inputs_BxW), np.asarray(noisy.time_BxW, np.float64)
  masked = (ids == MASK) & NOISABLE
  assert masked.sum() > 20 and not (masked & ~(np.asarray(noisy.weight_BxL) > 0)).any()
  want, slope = reference(ids, masked, level, own, theirs, shift)
  assert want > 0.1
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(grad, slope, atol=2e-6)
  assert not np.asarray(none).any()


def test_no_array_is_as_large_as_all_rows_logits():
  """Twice the ids take less than one array of float32 logits more, forward and backward."""
  objective, batch = D2f(0, BLOCK, target="teacher"), batch_of(64)
  rows = batch.tokens_BxL.size

  def temporary(vocab):
    def mean(own, theirs):
      noisy = objective.corrupt(jax.random.key(3), batch, 0)
      return objective.loss((Mean(), Mean()), (own, theirs), noisy)[0].total

    table = jax.ShapeDtypeStruct((vocab, WIDTH), jnp.float32)
    compiled = jax.jit(jax.grad(mean)).lower(table, table).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = temporary(20_000), temporary(40_000)
  assert many - few < 0.2 * rows * 20_000 * 4


def test_an_unknown_target_lists_the_known():
  with pytest.raises(ValueError, match="D2f: target='ids' is not one of text, teacher"):
    D2f(MASK, BLOCK, target="ids")
