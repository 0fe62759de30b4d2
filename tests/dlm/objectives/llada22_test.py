"""LLaDA2.2's labels of drafts: they keep what they can, and who follows them ends with the text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import edits
from dlm.objectives.llada22 import labels

MASK, INSERT, DELETE, VOCAB, WIDTH, ROWS = 9, 7, 8, 4, 6, 200
IDS = dict(mask_id=MASK, insert_id=INSERT, delete_id=DELETE)
labelled = jax.jit(functools.partial(labels, **IDS))


def drafts():
  """Pairs of a draft with masks and a text, of few tokens, and their lengths."""
  rng = np.random.default_rng(0)
  draft_NxM, text_NxM = rng.integers(0, VOCAB, (2, ROWS, WIDTH))
  draft_NxM = np.where(rng.random((ROWS, WIDTH)) < 0.2, MASK, draft_NxM)
  return draft_NxM, text_NxM, rng.integers(1, WIDTH + 1, ROWS)


def longest(draft, text):
  """Of a common subsequence in which a mask is any token."""
  if not draft or not text:
    return 0
  best = max(longest(draft[1:], text), longest(draft, text[1:]))
  if draft[0] in (MASK, text[0]):
    best = max(best, 1 + longest(draft[1:], text[1:]))
  return best


def test_as_many_tokens_stay_as_can():
  """A token stays, or asks for an insertion: what is kept of the draft, masks by their tokens."""
  draft_NxM, text_NxM, length_N = drafts()
  label_NxM = np.asarray(labelled(draft_NxM, text_NxM, length_N))
  for draft, text, length, label in zip(draft_NxM, text_NxM, length_N, label_NxM, strict=True):
    draft, text, label = (each[:length].tolist() for each in (draft, text, label))
    stays = [new for old, new in zip(draft, label, strict=True) if new in (old, INSERT)]
    assert len(stays) <= longest(draft, text)
    if MASK not in draft:
      replaced = sum(old != new and new < VOCAB for old, new in zip(draft, label, strict=True))
      assert len(stays) == longest(draft, text)
      assert replaced + label.count(DELETE) == length - len(stays)


def test_a_draft_that_follows_its_labels_ends_as_the_text():
  draft_NxM, text_NxM, length_N = map(jnp.asarray, drafts())
  open_NxM = jnp.arange(WIDTH)[None, :] < length_N[:, None]
  hole = edits.holes(open_NxM)
  for _ in range(2 * WIDTH):
    label_NxM = labelled(draft_NxM, text_NxM, length_N)
    insert_NxM, delete_NxM = (open_NxM & (label_NxM == each) for each in (INSERT, DELETE))
    written_NxM = jnp.where(insert_NxM | delete_NxM, draft_NxM, label_NxM)
    source_NxM = edits.sources(insert_NxM, delete_NxM, *hole)
    draft_NxM = edits.moved(written_NxM, source_NxM, MASK)
  np.testing.assert_array_equal(jnp.where(open_NxM, draft_NxM, 0), jnp.where(open_NxM, text_NxM, 0))
