"""Masked slots that carry their last prediction, against a loop by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from dlm import masks
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Fixed, Prophet, Smooth, Threshold
from dlm.sampling.sampler import Sampler
from tests.dlm.models.small import SMALL, init, random_tokens, slots_like
from tests.dlm.sampling.table import Lookup, random_table

MASK, VOCAB, BLOCK = 6, 7, 4


def sampler(policy, **fields):
  return Sampler(
    Lookup(), policy, NoCache(), masks.Full(), block=BLOCK, max_forwards=30, mask_id=MASK, **fields
  )


def by_hand(params, row, start, weight):
  """The surest token of the block, one a turn, in float64: tokens, and their turns."""
  own, left, right = (np.asarray(params[k], np.float64) for k in ("own", "left", "right"))
  row, when, turn = np.array(row), np.full(len(row), -1), 0
  soft = np.zeros((len(row), VOCAB))
  while (row == MASK).any():
    embedded = np.eye(VOCAB)[row] + soft * (row == MASK)[:, None]
    logits = own[: len(row)].copy()
    logits[1:] += (embedded @ left)[:-1]
    logits[:-1] += (embedded @ right)[1:]
    logits[:, MASK] = -np.inf
    p = softmax(logits, -1)
    soft = weight(turn) * p
    while not (row[start : start + BLOCK] == MASK).any():
      start += BLOCK
    slots = [i for i in range(start, min(start + BLOCK, len(row))) if row[i] == MASK]
    best = max(slots, key=lambda i: p[i].max())
    turn += 1
    row[best], when[best] = p[best].argmax(), turn
  return row, when


def test_it_equals_a_loop_by_hand():
  params = random_table(3, 12, VOCAB)
  rows = [[1, 2] + [MASK] * 9, [3] * 5 + [MASK] * 7]
  policy = Smooth(Fixed(k=1), start=0.5, growth=0.25, limit=1.2)
  canvas = make_canvas(
    [np.array(row) for row in rows], [np.array(row) == MASK for row in rows], [0, 1], slots=12,
    block=BLOCK, align="prompt", mask_id=MASK, seed=0,
  )  # fmt: skip
  out = jax.jit(loop.run, static_argnums=0)(sampler(policy), params, canvas)
  plain = jax.jit(loop.run, static_argnums=0)(sampler(Fixed(k=1)), params, canvas)
  assert (out.tokens_BxL != plain.tokens_BxL).any(), "smoothing changes the text"
  for i, row in enumerate(rows):
    tokens, when = by_hand(params, row, row.index(MASK), lambda t: min(0.5 + 0.25 * t, 1.2))
    np.testing.assert_array_equal(out.tokens_BxL[i, : len(row)], tokens)
    np.testing.assert_array_equal(out.when_BxL[i, : len(row)], when)


def test_a_model_adds_what_is_soft_to_its_embeddings():
  params, tokens_BxL = init(SMALL), random_tokens(2, 6)
  slot_BxL = slots_like(tokens_BxL)
  rows = {"slot_BxW": slot_BxL, "mask": masks.Full()(slot_BxL, 6)}
  other_BxL = tokens_BxL.at[:, 2].set(5)
  want = SMALL(params, other_BxL, **rows).head
  soft_BxLxD = want.embed_VxD[other_BxL] - want.embed_VxD[tokens_BxL]
  got = SMALL(params, tokens_BxL, soft_BxWxD=soft_BxLxD, **rows).head
  np.testing.assert_allclose(got.hidden_BxAxD, want.hidden_BxAxD, atol=1e-5)
  assert SMALL.width == want.embed_VxD.shape[1]
  assert not jnp.allclose(SMALL(params, tokens_BxL, **rows).head.hidden_BxAxD, want.hidden_BxAxD)


def test_what_cannot_work_is_refused():
  with pytest.raises(ValueError, match="scope='block' must be one of"):
    sampler(Smooth(Threshold()), scope="block")
  with pytest.raises(ValueError, match="smooths already"):
    Smooth(Prophet(Smooth(Threshold()), steps=4, answer_start=0))
