"""Text of tokens that come bit by bit."""

import pytest

from dlm.data import ByteTokenizer
from dlm.serving.text import TextStream

BYTES = ByteTokenizer()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
  ("text", "stops", "want"),
  [
    ("aéb€c", (), "aéb€c"),
    ("hello END and more", ("END",), "hello "),
    ("one EN two", ("END",), "one EN two"),
    ("abcabd.", ("abd", "cab"), "ab"),
    ("aaab", ("aab",), "a"),
    ("ends with a st", ("stop",), "ends with a "),
  ],
)
def test_what_comes_out_is_final_and_nothing_else_is_held_back(size, text, stops, want):
  stream, ids, out = TextStream(BYTES, stops), list(text.encode()), ""
  for first in range(0, len(ids), size):
    out += stream.push(ids[first : first + size])
    assert want.startswith(out)
  assert out == want and stream.told == len(want)
  assert stream.stopped == any(stop in text for stop in stops)
  assert stream.push(list(b"ay")) == ("" if stream.stopped else text[len(want) :] + "ay")


def test_half_a_character_waits_for_the_rest_of_it():
  stream = TextStream(BYTES)
  one, two = "é".encode()
  assert (stream.push([ord("a"), one]), stream.push([two])) == ("a", "é")
  assert stream.push([one]) == "" and stream.told == 2
