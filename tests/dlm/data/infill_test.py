"""Markup: spans, escapes, ids."""

import numpy as np
import pytest

from dlm.data import ByteTokenizer, encode_infill, parse_infill


@pytest.mark.parametrize(
  ("text", "segments"),
  [
    ("The cat [[4]] mat.", ("The cat ", 4, " mat.")),
    ("[[1]][[2]]x", (1, 2, "x")),
    ("[[[8]] is text", ("[[8]] is text",)),
    ("x = [[a]] [1] [[ 2 ]]", ("x = [[a]] [1] [[ 2 ]]",)),
    ("[[[8]]: [[8]]", ("[[8]]: ", 8)),
    ("", ()),
  ],
)
def test_segments(text, segments):
  assert parse_infill(text, 16) == segments


def test_an_empty_span_is_refused():
  with pytest.raises(ValueError, match=r"\[\[0\]\] at character 2 must ask for at least one"):
    parse_infill("a [[0]]", 16)


@pytest.mark.parametrize("text", ["[[17]]", "[[9]]a[[8]]", "[[" + "9" * 5000 + "]]"])
def test_spans_ask_for_no_more_than_a_row_holds(text):
  assert parse_infill("[[9]]a[[007]]", 16) == (9, "a", 7)
  with pytest.raises(ValueError, match=r"at character \d: spans may ask for at most 16 tokens"):
    parse_infill(text, 16)


def test_ids_are_open_where_the_mask_is():
  tokenizer = ByteTokenizer()
  ids, is_open = encode_infill("a[[3]]b", tokenizer, 3)
  np.testing.assert_array_equal(is_open, [False, True, True, True, False])
  np.testing.assert_array_equal(ids == tokenizer.mask_id, is_open)
  assert tokenizer.decode(ids) == "ab"
  assert encode_infill("", tokenizer, 3)[0].shape == (0,)
