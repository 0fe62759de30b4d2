"""WeDLM's two streams and its loss, against its rules said input by input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.objectives import WeDlm
from kernels_pallas.block_attention import Keys, visible
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK, Oracle

L, BLOCK, ROWS = 16, 4, 6
# Documents of 6 and 7 tokens, the second with a prompt of 3, and padding.
DOCUMENTS = [(0, 6, 0), (6, 13, 3)]
SEGMENT = np.array([1] * 6 + [2] * 7 + [0] * 3)
TOKENS = oracle.sample(ROWS, L)


def batch_of():
  noisable, position = np.zeros(L, bool), np.zeros(L, int)
  for first, end, prompt in [*DOCUMENTS, (13, 16, 3)]:
    noisable[first + prompt : end] = True
    position[first:end] = np.arange(end - first)
  return oracle.rows(TOKENS, np.tile(SEGMENT, (ROWS, 1))).replace(
    noisable_BxL=jnp.asarray(np.tile(noisable, (ROWS, 1))),
    position_BxL=jnp.asarray(np.tile(position, (ROWS, 1))),
  )


def streams_of(row: int, u_time: np.ndarray, u_mask: np.ndarray):
  """Of the noisy stream: input, position, target, 1 / ratio (0 where known), document, block."""
  inputs = []
  for number, (first, end, prompt) in enumerate(DOCUMENTS):
    for start in range(first, end, BLOCK):
      slots = list(range(start, min(start + BLOCK, end)))
      open_ = sorted((i for i in slots if i >= first + prompt), key=lambda i: u_mask[i])
      ratio = u_time[start]
      masked = set(open_[: round(len(open_) * float(ratio))])
      for slot in [i for i in slots if i not in masked] + [i for i in slots if i in masked]:
        token = TOKENS[row, slot]
        hidden = slot in masked
        inputs.append(
          (MASK if hidden else token, slot - first, token, hidden / ratio, number, start)
        )
  return inputs


@pytest.fixture(scope="module")
def noised():
  objective = WeDlm(MASK, BLOCK, next_weight=0.5)
  draws = oracle.draw(objective, 3, batch_of())

  @jax.jit
  def run(draws):
    noisy = objective.corrupt_with(draws, batch_of(), 0)
    loss, ce, _ = objective.losses(Oracle(ahead=0), {}, noisy)
    width = jnp.broadcast_to(jnp.arange(2 * L), (ROWS, 2 * L))
    total = objective.loss(Oracle(ahead=0), {}, noisy)[0]
    return noisy, visible(noisy.mask, Keys(width)), loss, ce, total

  noisy, seen, loss, ce, total = jax.tree.map(np.asarray, run(draws))
  return jax.tree.map(np.asarray, draws), noisy, seen, loss, ce, total


def test_known_tokens_come_first_and_all_keep_their_positions(noised):
  draws, noisy, seen, *_ = noised
  masks = 0
  for row in range(ROWS):
    want = streams_of(row, draws["u_time"][row], draws["u_mask"][row])
    token, position, target, _, number, start = map(np.array, zip(*want, strict=True))
    np.testing.assert_array_equal(noisy.inputs_BxW[row, :13], token)
    np.testing.assert_array_equal(noisy.slot_BxW[row, :13], position)
    np.testing.assert_array_equal(noisy.targets_BxL[row, :13], target)
    np.testing.assert_array_equal(noisy.inputs_BxW[row, L:], TOKENS[row])
    i, j = np.indices((13, 13))
    np.testing.assert_array_equal(seen[row, :13, :13], (start[i] == start[j]) & (j <= i))
    clean = (number[i] == (SEGMENT - 1)[j]) & (j < start[i])
    np.testing.assert_array_equal(seen[row, :13, L : L + 13], clean)
    same = SEGMENT[i] == SEGMENT[j]
    np.testing.assert_array_equal(seen[row, L : L + 13, L : L + 13], same & (j <= i))
    assert not seen[row, L : L + 13, :L].any()
    masks += (token == MASK).sum()
  assert masks > ROWS


def test_the_loss_is_the_mean_of_two_means(noised):
  """Masks weigh 1 / ratio, normalised over the batch; next tokens weigh alike."""
  draws, noisy, _, loss, ce, total = noised
  weight = np.zeros((ROWS, L))
  for row in range(ROWS):
    weight[row, :13] = [
      each[3] for each in streams_of(row, draws["u_time"][row], draws["u_mask"][row])
    ]
  following = np.zeros(L, bool)
  following[[1, 2, 3, 4, 5, 9, 10, 11, 12]] = True  # no document's first token, no prompt
  asked = np.concatenate([weight > 0, np.tile(following, (ROWS, 1))], axis=1)
  np.testing.assert_array_equal(noisy.weight_BxL > 0, asked)
  filled = (weight * ce[:, :L]).sum() / weight.sum()
  told = ce[:, L:][:, following].mean()
  want = (filled + 0.5 * told) / 1.5
  assert total.total / total.count == pytest.approx(want, rel=1e-5)
  np.testing.assert_allclose(loss.sum(), total.total, rtol=1e-5)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match=r"WeDlm: next_weight=-1\.0 must not be negative"):
    WeDlm(MASK, 4, next_weight=-1.0)
