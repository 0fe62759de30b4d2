"""DreamOn: holes grow and shrink, against its rules on Python lists; text around them stays."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dlm.sampling.policies import DreamOn
from tests.dlm.generate_test import generator, request
from tests.dlm.sampling.loop_test import MASK, VOCAB, canvas_of, run, sampler
from tests.dlm.sampling.table import Lookup, logits_by_hand, random_table

EXPAND, END, MOST, SLOTS, TOP_P = 5, 4, 7, 32, 0.8
POLICY = DreamOn(EXPAND, MOST, end_ids=(END,))
ROWS = [
  [1, 2, MASK, MASK, MASK, MASK, 3, 0, END],
  [1, MASK, MASK, 2, 2, MASK, MASK, MASK, 3],
  [0, 1, 2] + [MASK] * 7 + [1],
  [2, MASK, 1, 0, 3],
]


def settings(policy=POLICY, **fields):
  return sampler(policy, block=16, max_forwards=99, shift=1, top_p=TOP_P, **fields)


def shaped(logits):
  """Log-probabilities of the smallest set of best ids with mass TOP_P."""
  logp = log_softmax(logits, axis=-1)
  for row in logp:
    order = np.argsort(-row, kind="stable")
    mass = np.exp(row[order]).cumsum()
    row[order[np.searchsorted(mass, TOP_P) + 1 :]] = -np.inf
  return log_softmax(logp, axis=-1)


def by_hand(params, row):
  """Tokens, forwards, and how often a mask became two, was deleted, or was barred from growing."""
  row, free = list(row), [token == MASK for token in row]
  forwards, seen = 0, {"expanded": 0, "deleted": 0, "barred": 0}
  while MASK in [token for token, open_ in zip(row, free, strict=True) if open_]:
    masked = [i for i, token in enumerate(row) if token == MASK and free[i]]
    logits = logits_by_hand(params, np.array(row))
    logits[:, MASK] = -np.inf
    barred = sum(free) >= MOST or seen["expanded"] >= MOST
    would = logits[[max(i - 1, 0) for i in masked]]
    if barred:
      logits[:, EXPAND] = -np.inf
    logp = shaped(logits[[max(i - 1, 0) for i in masked]])
    p = np.exp(logp)
    entropy = -(p * np.where(p > 0, logp, 0)).sum(-1)
    k = int(entropy.argmin())
    at, token, forwards = masked[k], int(logp[k].argmax()), forwards + 1
    seen["barred"] += barred and would[k].argmax() == EXPAND
    if token == EXPAND:
      row.insert(at, MASK)
      free.insert(at, True)
      seen["expanded"] += 1
    elif token == END:
      hole_end = next((i for i in range(at, len(row)) if not free[i]), len(row))
      gone = {at, *(i for i in masked if at < i < hole_end)}
      row = [x for i, x in enumerate(row) if i not in gone]
      free = [x for i, x in enumerate(free) if i not in gone]
      seen["deleted"] += len(gone)
    else:
      row[at] = token
  return row, free, forwards, seen


SEEDS = range(8)


def test_holes_grow_and_shrink_as_lists_do():
  total = {"expanded": 0, "deleted": 0, "barred": 0}
  for seed in SEEDS:
    params = random_table(seed, SLOTS, VOCAB)
    out = run(settings(), params, canvas_of(ROWS, slots=SLOTS, block=16))
    for i, given in enumerate(ROWS):
      tokens, free, forwards, seen = by_hand(params, given)
      n = int(out.length_B[i])
      assert out.tokens_BxL[i, :n].tolist() == tokens
      assert out.open_BxL[i].tolist() == free + [False] * (SLOTS - n)
      assert int(out.forwards_Bx3[i].sum()) == forwards
      total = {name: total[name] + count for name, count in seen.items()}
  assert min(total.values()) > 3, total


def test_a_row_alone_is_the_row_in_a_batch_at_any_temperature():
  params = random_table(3, SLOTS, VOCAB)
  warm = settings(temperature=1.0)
  together = run(warm, params, canvas_of(ROWS, slots=SLOTS, block=16, seed=5))
  lengths = together.length_B.tolist()
  assert lengths != [len(row) for row in ROWS]
  for i, row in enumerate(ROWS):
    alone = run(warm, params, canvas_of([row], row_ids=[i], slots=SLOTS, block=16, seed=5))
    for name in ("tokens_BxL", "open_BxL", "length_B", "forwards_Bx3"):
      np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])


@pytest.mark.parametrize(
  ("prompt", "fixed"),
  [("a ü [[3]] [[[2]] \n", ["a ü ", " [[2]] \n"]), ("[[2]]bc[[4]]", ["", "bc", ""])],
)
def test_text_around_holes_is_kept_to_the_byte(prompt, fixed):
  policy = DreamOn(ord("x"), 9, end_ids=(ord("."),))
  write = generator(Lookup(), policy, block=16, shift=1, temperature=1.0, batch=8)
  params = random_table(0, 64, 260, scale=0.1)
  params["own"] = params["own"].at[:, jnp.array(list(b"xyz."))].add(99)  # nothing else is written
  asked = request(prompt, slots=32, infill=True)
  lengths = set()
  for done in write(params, asked.samples(8)):
    rebuilt = "".join(each for pair in zip(fixed, [*done.spans, ""], strict=True) for each in pair)
    assert done.text == rebuilt
    assert set("".join(done.spans)) <= set("yz") and done.finished
    lengths.add(len("".join(done.spans)) - int(asked.open.sum()))
  assert min(lengths) < 0 < max(lengths)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: DreamOn(-1), "expand_id=-1 must not be negative"),
    (lambda: DreamOn(5, 0), "most=0 must be at least 1"),
    (lambda: DreamOn(5, end_ids=(5,)), "expand_id=5 must be none of"),
    (lambda: settings(scope="block"), "scope='block'"),
  ],
)
def test_mistakes_are_named(make, words):
  with pytest.raises(ValueError, match=words):
    make()
