"""DreamOn's rows, against the same rules on Python lists."""

import jax
import numpy as np
import pytest

from dlm.objectives import DreamOn
from tests.dlm.objectives import oracle
from tests.dlm.objectives.oracle import MASK

ROWS, LENGTH, VOCAB, END, EXPAND = 400, 20, 12, 7, 8
# Two documents, the first with a prompt of three, and padding; or one of the row's length.
DOCUMENTS = [[(0, 8, 3), (8, 14, 0)], [(0, 20, 2)], [(0, 3, 2)], [(0, 12, 0)]]
OBJECTIVE = DreamOn(MASK, vocab=VOCAB, end_id=END, expand_id=EXPAND, ends=5, merge=0.9)


def batch_of():
  segment, noisable = np.zeros((ROWS, LENGTH), int), np.zeros((ROWS, LENGTH), bool)
  for row in range(ROWS):
    for number, (first, end, prompt) in enumerate(DOCUMENTS[row % 4]):
      segment[row, first:end], noisable[row, first + prompt : end] = number + 1, True
  return oracle.rows(oracle.sample(ROWS, LENGTH), segment).replace(noisable_BxL=noisable)


def by_hand(row, batch, draws):
  """Input, target, position, document, kind (0 clean, 1 asked, 2 an asked end token) of a row."""
  u_first, u_end, u_ends, t, u_static = (float(u) for u in draws["u_row"][row])
  documents = DOCUMENTS[row % 4]
  may = [i for first, end, p in documents for i in range(first + max(p, 1), end - 1)]
  text = [(int(batch.tokens_BxL[row, i]), int(batch.segment_BxL[row, i])) for i in range(LENGTH)]
  first = stop = ends = 0
  if may:
    first = may[int(u_first * len(may))]
    run = next(i for i in range(first, LENGTH + 1) if i not in may) - first
    stop = first + 1 + int(u_end * run)
    ends = int(u_ends * min(5, LENGTH - documents[-1][1]))
  text[stop:stop] = [(END, text[first][1])] * ends
  text, hole = text[:LENGTH], range(first, stop + ends)
  u_mask, u_merge = draws["u_mask"][row], draws["u_merge"][row]
  drawn = [i for i in hole if u_mask[i] < t]
  masked = {*drawn, *range(stop, stop + ends)}
  merge = 0.9 * (1 if u_static < 0.5 else 1 - len(drawn) / max(len(hole), 1))
  merged = [i for i in range(first, stop) if {i, i + 1} <= masked and u_merge[i] < merge]
  out, began = [], {}
  for i, (token, document) in enumerate(text):
    if i - 1 in merged:
      continue
    position = len(out) - began.setdefault(document, len(out))
    target = EXPAND if i in merged else token
    kind = 0 if i not in masked else 2 if target == END else 1
    out.append((MASK if kind else token, target, position, document, kind))
  return out, t, len(merged)


@pytest.fixture(scope="module")
def noised():
  batch = batch_of()
  draws = oracle.draw(OBJECTIVE, 4, batch)
  return jax.tree.map(np.asarray, (batch, draws, oracle.replay(OBJECTIVE, draws, batch)))


def test_rows_are_those_of_lists(noised):
  batch, draws, noisy = noised
  merges, kinds, others = 0, [], []
  for row in range(ROWS):
    want, t, merged = by_hand(row, batch, draws)
    inputs, targets, position, document, kind = map(np.array, zip(*want, strict=True))
    text, n = document > 0, (document > 0).sum()
    np.testing.assert_array_equal(noisy.inputs_BxW[row, :n], inputs[text])
    np.testing.assert_array_equal(noisy.targets_BxL[row, :n], targets[text])
    np.testing.assert_array_equal(noisy.slot_BxW[row, :n], position[text])
    np.testing.assert_array_equal(noisy.mask.q_segment_BxW[row, :n], document[text])
    assert not noisy.mask.q_segment_BxW[row, n:].any() and not noisy.weight_BxL[row, n:].any()
    before = np.arange(n) - (position[text] > 0)
    np.testing.assert_array_equal(noisy.ask_BxL[row, :n], before)
    merges += merged
    kinds.append((row, kind[text], 1 - t))
    others.append((kind == 1).sum())
  ends = sum((kind == 2).sum() for _, kind, _ in kinds)
  assert merges > 100 and ends > 100
  for row, kind, weight in kinds:
    want = weight * np.choose(kind, [0, 1, 1 / ends])
    np.testing.assert_allclose(noisy.weight_BxL[row, : len(kind)], want, rtol=1e-5)
  np.testing.assert_allclose(noisy.count_B, np.array(others) + 1 / ROWS, rtol=1e-5)


def test_holes_are_any_run_inside_a_document(noised):
  """Of a row of 12 tokens: neither the first token nor the last, and all others alike."""
  batch = oracle.rows(np.zeros((4000, 12), np.int32))
  first, end = jax.jit(lambda u: OBJECTIVE._hole(batch, u[:, 0], u[:, 1]))(
    np.random.default_rng(0).random((4000, 2), np.float32)
  )
  first, end = np.asarray(first), np.asarray(end)
  np.testing.assert_allclose(np.bincount(first, minlength=12)[1:11] / 4000, 0.1, atol=0.02)
  assert first.min() == 1 and end.max() == 11 and (end > first).all()


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"expand_id": VOCAB}, f"expand_id={VOCAB} must lie below vocab={VOCAB}"),
    ({"expand_id": MASK}, f"expand_id={MASK} must lie below .* neither mask_id={MASK}"),
    ({"end_id": -1}, "end_id=-1 and expand_id=8 must not be negative"),
    ({"ends": 0}, r"ends=0 must be at least 1 \(none\)"),
    ({"merge": 1.5}, r"merge=1\.5 must lie in \[0, 1\]"),
  ],
)
def test_mistakes_are_named(fields, words):
  with pytest.raises(ValueError, match=f"DreamOn: {words}"):
    DreamOn(MASK, **{"vocab": VOCAB, "end_id": END, "expand_id": EXPAND, **fields})
