"""Answers with their write order, as --trace writes them, become rows that tell it."""

import json

import numpy as np
import pytest

from dlm.data import open_rows
from dlm.data.sources.example import split_of
from dlm.data.tokenizers import ByteTokenizer
from dlm.data.traces import read_traces

TOKENIZER = ByteTokenizer()
MASK, EOS = TOKENIZER.mask_id, TOKENIZER.eos_id
# Prompt of two ids; the stop id was written first of all, and nothing behind it.
ENDED = {
  "row": [65, 66, 67, 68, EOS, MASK], "when": [-1, -1, 3, 2, 1, -1], "tokens": [67, 68],
  "reason": "stop_id",
}  # fmt: skip
FULL = {"row": [65, 67, 68], "when": [-1, 2, 1], "tokens": [67, 68], "reason": "length"}
HALF = {"row": [65, 67, MASK], "when": [-1, 1, -1], "tokens": [67], "reason": "max_forwards"}
# Numbers of lines that are trained on.
TRAIN = [number for number in range(1, 60) if split_of(f"line {number}") == "train"]


def written(folder, *records):
  """A file whose lines of the split "train" hold these; the rest is blank."""
  lines = [""] * TRAIN[len(records) - 1]
  for number, record in zip(TRAIN, records, strict=False):
    lines[number - 1] = json.dumps(record)
  path = folder / "traces.jsonl"
  path.write_text("\n".join(lines))
  return path


def rows(*sources, **layout):
  return open_rows(sources, TOKENIZER, batch=8, seed=0, **layout)


def test_a_row_ends_with_its_stop_id_and_tells_who_wrote_it(tmp_path):
  made = rows((f"traces:{written(tmp_path, ENDED)}", 1.0), length=8, mode="pad", pad="none")
  assert made.traced and made.alone
  batch = made[0]
  fields = (batch.tokens_BxL, batch.noisable_BxL, batch.segment_BxL, batch.extra["when"])
  tokens, learned, segment, when = (x[0].tolist() for x in fields)
  assert tokens[:5] == [65, 66, 67, 68, EOS]
  assert learned == [False, False, True, True, True, False, False, False]
  assert segment == [1] * 5 + [0] * 3
  assert when == [-1, -1, 3, 2, 1, -1, -1, -1]


def test_packed_rows_tell_it_too(tmp_path):
  batch = rows((f"traces:{written(tmp_path, FULL, FULL)}", 1.0), length=6, shuffle=False)[0]
  assert batch.extra["when"][0].tolist() == [-1, 2, 1, -1, 2, 1]


def test_mixtures_of_traces_tell_it_and_others_do_not(tmp_path):
  traces = (f"traces:{written(tmp_path, FULL)}", 1.0)
  both = rows(traces, traces, length=4, mode="pad", pad="none")[0]
  np.testing.assert_array_equal(both.extra["when"], np.tile([-1, 2, 1, -1], (8, 1)))
  mixed = rows(traces, ("lists", 1.0), length=128, mode="pad", pad="none")
  assert not mixed.traced and len(mixed[0]) == 4


def test_what_ran_out_of_forwards_is_left_out_and_said(tmp_path):
  path = written(tmp_path, FULL, HALF)
  found = read_traces(str(path), "train", TOKENIZER)
  assert [row.tolist() for row in found.rows] == [FULL["row"]] and found.left_out == 1
  made = rows((f"traces:{path}", 1.0), length=4, mode="pad")
  assert "traces: 1 answers that ran out of forwards are left out" in made.notes()


@pytest.mark.parametrize(
  ("record", "message"),
  [
    ({"text": "no ids"}, "needs row, a list of whole numbers"),
    (FULL | {"when": [-1, 1]}, "each of 3 ids in row must have its own of 2 in when"),
    (FULL | {"when": [-1, -1, -1]}, "and one be written"),
    (FULL | {"row": [65, 67, 999]}, "row holds ids outside 0..259"),
    (FULL | {"row": [65, 67, MASK]}, f"row holds mask_id={MASK}"),
    (HALF, "no trace falls into split='train'"),
  ],
)
def test_what_is_no_trace_is_named(tmp_path, record, message):
  with pytest.raises(ValueError, match=message):
    rows((f"traces:{written(tmp_path, record)}", 1.0), length=4, mode="pad")
