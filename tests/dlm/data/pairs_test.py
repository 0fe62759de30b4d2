"""Two answers to a prompt stand side by side in every batch, the better one first."""

import json

import numpy as np
import pytest

from dlm.data import open_rows
from dlm.data.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
LONG = 7  # the pair whose rejected answer does not fit


def written(folder):
  path = folder / "pairs.jsonl"
  lines = []
  for i in range(40):
    worse = "n" * (40 if i == LONG else 2)
    lines.append(json.dumps({"prompt": f"{i:02d}", "chosen": "yyy", "rejected": worse}) + "\n")
  path.write_text("".join(lines))
  return path


def rows(source, **options):
  given = {"length": 8, "mode": "pad", "pad": "none", "too_long": "drop"} | options
  silent = given.pop("silent", None)
  own = {} if silent is None else {"silent": silent}
  return open_rows(((f"pairs:{source}", 1.0, own),), TOKENIZER, batch=4, seed=0, **given)


def test_pairs_stay_together_in_any_order_and_are_dropped_whole(tmp_path):
  made = rows(written(tmp_path))
  assert made.paired and not made.traced
  pairs = made.epoch_rows[0] // 2
  assert made.report[0]["dropped"] == 2
  seen = []
  for step in range(made.epoch_rows[0] // 4 * 2):  # two epochs, or nearly
    batch = made[step]
    np.testing.assert_array_equal(batch.extra["advantage_B"], [1, -1, 1, -1])
    texts = [
      TOKENIZER.decode(ids[segment > 0]) for ids, segment in zip(batch[0], batch[2], strict=True)
    ]
    for chosen, rejected in (texts[:2], texts[2:]):
      assert (chosen[:2], chosen[2:5], rejected[2:4]) == (rejected[:2], "yyy", "nn")
      seen.append(int(chosen[:2]))
  first = seen[:pairs]
  assert LONG not in seen and len({*first}) == pairs and first != sorted(first)
  np.testing.assert_array_equal(batch.noisable_BxL[:, :2], False)
  np.testing.assert_array_equal(batch.noisable_BxL.sum(1), [4, 3, 4, 3])


def test_what_tools_answered_in_a_pair_is_read_and_not_learned(tmp_path):
  """Offline Agentic VRPO: whole trajectories are compared, by what the model wrote of them."""
  path = tmp_path / "pairs.jsonl"
  pair = {"prompt": "q", "chosen": "a[b]c", "rejected": "a[d"}
  path.write_text((json.dumps(pair) + "\n") * 40)
  batch = rows(path, silent=("[", "]"))[0]
  learned = np.asarray(batch.noisable_BxL[:2, :7], int)
  np.testing.assert_array_equal(learned, [[0, 1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mode": "pack"}, "pairs: mode='pack', per_row=1 must be 'pad' and 1: an answer a row"),
    ({"per_row": 2}, "pairs: mode='pad', per_row=2 must be 'pad' and 1: an answer a row"),
    ({"length": 3}, "pairs: no example fits 3 columns"),
  ],
)
def test_layouts_that_part_them_are_refused(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    rows(written(tmp_path), **options)


def test_a_line_that_is_no_pair_is_named(tmp_path):
  path = tmp_path / "pairs.jsonl"
  path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": 1}) + "\n")
  with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: needs rejected, a text; has"):
    rows(path)
  with pytest.raises(ValueError, match="pairs: rows in pairs are a run's only source"):
    sources = ((f"pairs:{written(tmp_path)}", 1.0), ("lists", 1.0))
    open_rows(sources, TOKENIZER, batch=4, seed=0, length=64, mode="pad")
