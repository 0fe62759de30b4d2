"""What the terminal shows of a canvas."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dlm import live
from dlm.data import ByteTokenizer
from dlm.sampling.canvas import make_canvas

TOKENIZER = ByteTokenizer()
MASK = TOKENIZER.mask_id


def canvas(text: bytes, when: list[int], forwards: int, given: int = 0, slots: int = 0):
  """One row: `given` bytes of prompt, then bytes written at forward `when`; -1: still masked."""
  ids = np.frombuffer(text, np.uint8).astype(np.int32)
  free = np.arange(len(ids)) >= given
  made = make_canvas(
    [ids], [free], [0], slots=slots or len(ids), block=1, align="canvas", mask_id=MASK, seed=0
  )
  pad = (0, made.tokens_BxL.shape[1] - len(ids))
  when = np.asarray(when)
  tokens = np.where((when < 0) & free, MASK, ids)
  return made.replace(
    tokens_BxL=jnp.asarray(np.pad(tokens, pad))[None],
    when_BxL=jnp.asarray(np.pad(when, pad, constant_values=-1))[None],
    forwards_Bx3=jnp.asarray([[1, forwards - 1, 7]]),
  )


def spans(text):
  return [(text.plain[span.start : span.end], span.style) for span in text.spans]


def test_tokens_are_coloured_by_age_and_settle():
  shown = live.render(
    canvas(b"abcdefgh", [-1, -1, 9, 8, 7, 5, 1, -1], forwards=9, given=2), 0, TOKENIZER, MASK
  )
  assert shown.plain == "abcdefg░"
  assert spans(shown) == [
    ("ab", live.GIVEN), ("c", live.AGES[0]), ("d", live.AGES[1]), ("e", live.AGES[2]),
    ("fg", live.AGES[-1]), ("░", live.MASKED),
  ]  # fmt: skip


def test_commits_do_not_age_tokens():
  """The canvas counts 7 commits; `when` counts deciding forwards alone."""
  shown = live.render(canvas(b"ab", [2, 1], forwards=2), 0, TOKENIZER, MASK)
  assert spans(shown) == [("a", live.AGES[0]), ("b", live.AGES[1])]


def test_characters_are_whole_where_their_bytes_are_of_one_age():
  whole = live.render(canvas("é".encode(), [3, 3], forwards=3), 0, TOKENIZER, MASK)
  assert whole.plain == "é"
  halves = live.render(canvas("é".encode(), [3, 2], forwards=3), 0, TOKENIZER, MASK)
  assert halves.plain == "\ufffd\ufffd"
  waiting = live.render(canvas("é".encode(), [3, -1], forwards=3), 0, TOKENIZER, MASK)
  assert waiting.plain == "\ufffd░"


def test_slots_past_the_end_of_a_row_are_not_shown():
  assert live.render(canvas(b"ab", [1, 1], 1, slots=8), 0, TOKENIZER, MASK).plain == "ab"


STREAM = [
  canvas(b"abc", [-1, -1, -1], forwards=1, given=1),
  canvas(b"abc", [-1, -1, 2], forwards=2, given=1),
  canvas(b"abc", [-1, 3, 2], forwards=3, given=1),
]


def test_file_gets_the_first_and_the_last_canvas(capsys):
  live.show(iter(STREAM), 1, TOKENIZER, MASK, seconds=0)
  said = capsys.readouterr().out.split("\n")
  assert [line for line in said if line.strip()] == [
    "0 tokens, 8 forwards", "a░░", "2 tokens, 10 forwards", "abc",
  ]  # fmt: skip


def test_terminal_shows_every_canvas_in_place(monkeypatch):
  screen = io.StringIO()
  terminal = Console(file=screen, force_terminal=True, width=40)
  monkeypatch.setattr(live, "Console", lambda **_: terminal)
  live.show(iter(STREAM), 1, TOKENIZER, MASK, seconds=0)
  said = screen.getvalue()
  assert all(f"{n} tokens" in said for n in (0, 1, 2)) and "\x1b[" in said


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "a\\b"])
def test_markup_in_a_completion_is_text(capsys, text):
  """Rich must not read it."""
  one = canvas(text.encode(), [1] * len(text), forwards=1)
  live.show([one, one], 1, TOKENIZER, MASK, seconds=0)
  assert text in capsys.readouterr().out
