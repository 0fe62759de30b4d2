"""The sets of a hole, against all texts that a grammar has; whatever is written together is one."""

import itertools
import re

import numpy as np
import pytest

from dlm.data import ByteTokenizer, train_bpe
from dlm.sampling.state import WAITS
from dlm.serving.grammars import Words
from dlm.serving.holds import Hold, Part

MASK = 9
PIECES = [b"a", b"b", b"c", b"ab", b"ba", b"abc", "é".encode()[:1], "é".encode()[1:], None, None]
STOP = 8


class Toy:
  """Ten ids, some of several bytes, and of parts of a character."""

  vocab_size, mask_id = len(PIECES), MASK

  def pieces(self):
    return PIECES

  def encode(self, text):
    return np.array([PIECES.index(text.encode())])


WORDS = Words(Toy(), never=(MASK,), stops=(STOP,))


def texts(grammar, size):
  """All rows of so many tokens that an automaton accepts, found by trying each."""
  step = {
    (s, c): t for s, c, t in zip(grammar.source_E, grammar.class_E, grammar.target_E, strict=True)
  }
  found = set()
  for row in itertools.product(range(MASK), repeat=size):
    state = grammar.start
    for token in row:
      state = step.get((state, grammar.class_V[token]))
      if state is None:
        break
    else:
      if grammar.ends_S[state]:
        found.add(row)
  return found


def bits(hold, k):
  return np.flatnonzero(np.unpackbits(hold.sets_KxU[k].view(np.uint8), bitorder="little"))


GRAMMARS = {
  "choice": WORDS.choice(("abc", "ba", "cab", "aé")),
  "answer": WORDS.within(WORDS.choice(("ab", "abab", "c")), last=True),
  "tokens": WORDS.tokens(["a", "ab", 7]),
  "any": WORDS.any(),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_token_is_allowed_if_some_text_has_it_there(name):
  grammar, rng = GRAMMARS[name], np.random.default_rng(0)
  for size in (1, 2, 3, 4):
    every = texts(grammar, size)
    assert grammar.fits(size) == bool(every)
    for _ in range(8 if every else 0):
      some = np.array(sorted(every)[rng.integers(len(every))])
      row = np.where(rng.random(size) < 0.6, MASK, some)
      left = [text for text in every if all(a in (b, MASK) for a, b in zip(row, text, strict=True))]
      hold = Hold([Part(0, size, grammar)], row, MASK, 32, 10)
      for n in np.flatnonzero(row == MASK):
        assert set(bits(hold, hold.set_L[n])) == {text[n] for text in left}
      assert (hold.set_L[row != MASK] == WAITS).all(), "what is written stays"
      # One of each group, and of the slots of none any: all of them together are in a text.
      groups = [np.flatnonzero((hold.group_L == g) & (row == MASK)) for g in range(1, size + 1)]
      groups = [group for group in groups if group.size]
      alone = np.flatnonzero((hold.group_L == 0) & (row == MASK))
      for slots in itertools.product(*groups):
        at = [*alone, *slots]
        together = set(itertools.product(*(bits(hold, hold.set_L[n]) for n in at)))
        assert together == {tuple(text[n] for n in at) for text in left} & together
        assert together <= {tuple(text[n] for n in at) for text in left}


def written(grammar, size, tokenizer, rng, most=64):
  """A hole written in any order, several tokens at once where that is allowed; and its forwards."""
  row, turns = np.full(size, tokenizer.mask_id), 0
  hold = Hold([Part(0, size, grammar)], row, tokenizer.mask_id, most, tokenizer.vocab_size)
  while (row == tokenizer.mask_id).any():
    hold.read(row)
    used = set()
    for n in rng.permutation(size):
      if hold.set_L[n] >= 0 and not (hold.group_L[n] and hold.group_L[n] in used):
        used.add(hold.group_L[n])
        row[n] = rng.choice(bits(hold, hold.set_L[n]))
    turns += 1
  return tokenizer.decode(row), turns


@pytest.mark.parametrize(
  ("pattern", "size", "turns"),
  [
    ("[a-z]{5}", 5, 1),  # all slots at once
    (r"\d{2}-\d{2}", 5, 1),
    ("(ab)+", 6, 4),
    (r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", 7, 8),
    ("(ab|ba)[xy](z|zz|zzz)", 5, 4),
    ("é+|[^x]é", 4, 5),
    ('"[^"]*"', 6, 6),
  ],
)
def test_whatever_is_written_in_whatever_order_matches_the_expression(pattern, size, turns):
  pytest.importorskip("outlines_core")
  grammar, rng = (
    Words(ByteTokenizer(), (256, 257, 259), (258,)).regex(pattern),
    np.random.default_rng(0),
  )
  for most in (64, 2):  # with too few sets for all slots some wait
    ends = [written(grammar, size, ByteTokenizer(), rng, most) for _ in range(12)]
    assert all(re.fullmatch(pattern, text) for text, _ in ends), ends
    assert most == 2 or max(each for _, each in ends) <= turns


def test_tokens_of_many_bytes_make_up_a_text_however_they_are_cut():
  pytest.importorskip("outlines_core")
  bpe = train_bpe(["the cat sat on the mat, the hat"] * 3, 290)
  words, rng = Words(bpe, (bpe.mask_id,), (bpe.eos_id,)), np.random.default_rng(0)
  grammar = words.regex("(the|a) (cat|hat) sat")
  ends = {
    written(grammar, size, bpe, rng)[0]
    for size in (3, 6, 9)
    if grammar.fits(size)
    for _ in range(9)
  }
  assert len(ends) > 2 and all(re.fullmatch("(the|a) (cat|hat) sat", text) for text in ends)
  schema = '{"type": "object", "properties": {"a": {"enum": ["x", "the"]}}, "required": ["a"]}'
  assert words.regex(schema, schema=True).fits(9)
  assert bpe.pieces()[bpe.eos_id] is None and b"the" in bpe.pieces()


@pytest.mark.parametrize(
  ("pattern", "says"),
  [
    ("(", "DFA"),
    ("a(?=b)", "DFA"),
    ("(a|b)*a(a|b){26}", "more time or memory"),
    ("x" * 20000, "16384"),
  ],
)
def test_expressions_that_no_automaton_knows_are_refused(pattern, says):
  pytest.importorskip("outlines_core")
  with pytest.raises(ValueError, match=says):
    Words(ByteTokenizer(), (), ()).regex(pattern)
