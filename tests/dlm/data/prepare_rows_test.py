"""Rows in ArrayRecord files: each document once, whoever writes, however many hosts read."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from dlm import files
from dlm.data import ByteTokenizer, open_rows, train_bpe
from dlm.data.array_records import INDEX
from dlm.data.prepare_rows import RowPlan, write_rows

pytest.importorskip("array_record")
TOKENIZER = ByteTokenizer()
LENGTH = 16


def source(folder, documents):
  """Of texts, or of pairs of a prompt and a completion."""
  pairs = [("", each) if isinstance(each, str) else each for each in documents]
  lines = [json.dumps({"prompt": prompt, "completion": said}) + "\n" for prompt, said in pairs]
  for split in ("train", "test"):
    (folder / f"{split}.jsonl").write_text("".join(lines))
  return f"jsonl:{folder}/{{split}}.jsonl"


TEXTS = [f"document {i} " + "x" * (7 * i % 31) for i in range(40)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
  return RowPlan(source(tmp_path_factory.mktemp("texts"), TEXTS), LENGTH, shards=5)


@pytest.fixture(scope="module")
def packed(plan, tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("packed"))
  done = write_rows(folder, plan, TOKENIZER)
  assert done == {"written": 10, "kept": 0, "complete": True, "notes": ()}
  return folder


def rows(folder, **more):
  fixed = {"length": LENGTH, "batch": 4, "seed": 3}
  return open_rows(((f"arrayrecord:{folder}", 1.0),), TOKENIZER, **(fixed | more))


def all_rows(found):
  """One epoch in batches of one."""
  steps = [found[step] for step in range(found.epoch_rows[0])]
  return [np.concatenate(field) for field in zip(*steps, strict=True)]


def test_packed_rows_are_the_documents_end_to_end(packed):
  """Each shard ends in padding, and only there is any."""
  tokens, noisable, segment, position = all_rows(rows(packed, batch=1, shuffle=False))
  np.testing.assert_array_equal(noisable, segment > 0)
  stream = tokens[segment > 0]
  ends = np.flatnonzero(stream == TOKENIZER.eos_id) + 1
  assert [TOKENIZER.decode(part) for part in np.split(stream, ends)] == [*TEXTS, ""]
  assert (segment == 0).any(axis=1).sum() <= 5
  begins = np.diff(segment, axis=1, prepend=-1) != 0
  assert (position[begins] == 0).all() and (np.diff(position, axis=1)[~begins[:, 1:]] == 1).all()


@pytest.mark.parametrize(("hosts", "then"), [(1, 2), (2, 4), (4, 1)])
def test_an_epoch_has_each_row_once_though_the_number_of_hosts_changes(packed, hosts, then):
  """Steps 0 to 5 by so many hosts, the rest of two epochs by others."""
  alone = rows(packed)
  size = alone.epoch_rows[0]
  stored = all_rows(rows(packed, batch=1, shuffle=False))[0]
  steps = -(-2 * size // 4)
  seen = []
  for count, some in ((hosts, range(6)), (then, range(6, steps))):
    shares = [rows(packed, process_index=h, process_count=count) for h in range(count)]
    for step in some:
      parts = [share[step] for share in shares]
      for field, whole in zip(zip(*parts, strict=True), alone[step], strict=True):
        np.testing.assert_array_equal(np.concatenate(field), whole)
      seen += [row.tobytes() for part in parts for row in part.tokens_BxL]
  expected = sorted(row.tobytes() for row in stored)
  assert sorted(seen[:size]) == sorted(seen[size : 2 * size]) == expected
  assert seen[:size] != seen[size : 2 * size]


@pytest.mark.parametrize("per_row", [1, 3])
def test_padded_rows_hold_each_example_once(tmp_path, per_row):
  """They are what is made on the way, to the last, which memory would fill up from the start."""
  pairs = [(f"ask {i}:", f"answer {i}") for i in range(8)] + [("a prompt that fills it" * 4, "y")]
  layout = {"mode": "pad", "per_row": per_row, "pad": "none"}
  spec = source(tmp_path, pairs)
  plan = RowPlan(spec, 60, layout=layout, shards=2)
  write_rows(str(tmp_path / "out"), plan, TOKENIZER)
  found = rows(tmp_path / "out", length=60, batch=1, shuffle=False, **layout)
  tokens, noisable, segment, position = all_rows(found)
  answers = TOKENIZER.decode(tokens[noisable])
  assert answers == "".join(f"answer {i}" for i in range(8))
  assert found.alone == (per_row == 1) and "of 18 examples" not in found.notes()[0]
  assert "of 9 examples 1 are left out" in found.notes()[0]
  memory = open_rows(
    ((spec, 1.0),), TOKENIZER, length=60, batch=1, seed=3, shuffle=False, **layout
  )[0]
  for stored, made in zip((tokens, noisable, segment, position), memory, strict=True):
    np.testing.assert_array_equal(stored[:1], made)
    assert stored.dtype == made.dtype


def test_workers_share_the_shards_and_one_that_was_stopped_goes_on(plan, packed, tmp_path):
  def broken(documents, total, label):
    yield from (document for _, document in zip(range(20), documents, strict=False))
    raise OSError("disk full")

  folder = tmp_path / "out"
  with pytest.raises(OSError, match="disk full"):
    write_rows(str(folder), plan, TOKENIZER, worker=0, workers=2, progress=broken)
  assert len(list(folder.glob("*.array_record"))) == 2
  with pytest.raises(ValueError, match=f"{INDEX} is missing: not, or not yet all, written"):
    rows(folder)
  other = write_rows(str(folder), plan, TOKENIZER, worker=1, workers=2)
  assert other == {"written": 5, "kept": 0, "complete": False, "notes": ()}
  first = write_rows(str(folder), plan, TOKENIZER, worker=0, workers=2)
  assert first == {"written": 3, "kept": 2, "complete": True, "notes": ()}
  for name in {path.name for path in folder.iterdir()} - {"tokenizer"}:
    assert (folder / name).read_bytes() == (pathlib.Path(packed) / name).read_bytes(), name
  assert sorted(p.name for p in folder.iterdir()) == sorted(os.listdir(packed))


def test_two_workers_that_end_at_once_do_not_mind(plan, packed, tmp_path):
  """Both find all shards whole; while one writes the index, the other leaves it alone."""
  for name in os.listdir(packed):
    if name.startswith(("train", "test")):
      shutil.copy(f"{packed}/{name}", tmp_path)
  with files.replacing(tmp_path / INDEX) as file:
    done = write_rows(str(tmp_path), plan, TOKENIZER)
    file.write((pathlib.Path(packed) / INDEX).read_bytes())
  assert done == {"written": 0, "kept": 10, "complete": True, "notes": ()}
  assert len(rows(tmp_path)[0].tokens_BxL) == 4


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"length": 8}, "length=16, not 8: write elsewhere"),
    ({"layout": {"document_mask": False}}, "layout={'mode': 'pack', 'document_mask': True}, not"),
    ({"shards": 1}, "index.json: shards=5, not 1"),
  ],
)
def test_shards_of_two_plans_are_never_mixed(plan, packed, change, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    write_rows(packed, dataclasses.replace(plan, **change), TOKENIZER)


def test_texts_that_changed_are_never_mixed_either(plan, packed, tmp_path):
  spec = source(tmp_path, TEXTS)
  before = RowPlan(spec, LENGTH, shards=2)
  write_rows(str(tmp_path / "out"), before, TOKENIZER)
  source(tmp_path, [*TEXTS, "one more"])
  with pytest.raises(ValueError, match=r"index\.json: texts="):
    write_rows(str(tmp_path / "out"), before, TOKENIZER)


@pytest.mark.parametrize(
  ("plan", "message"),
  [
    ({"length": 1}, "length=1 must be at least 2"),
    ({"shards": 0}, "shards=0 must be at least 1"),
    ({"layout": {"mode": "fold"}}, "lists: unknown mode='fold'; known: pack, pad"),
    ({"layout": {"mode": "pad", "per_row": 9}}, "per_row=9 must be within 1..8"),
    ({"layout": {"rows": 9}}, "layout: unknown ['rows']; known: mode, document_mask, pad"),
  ],
)
def test_a_plan_that_cannot_be_is_refused_at_once(plan, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    RowPlan(**{"spec": "lists", "length": 16} | plan)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"length": 32}, "length=32 must be 16, as its rows are"),
    ({"mode": "pad"}, "mode='pad' must be 'pack', as its rows are"),
    ({"document_mask": False}, "document_mask=False must be True, as its rows are"),
  ],
)
def test_a_run_takes_the_rows_as_they_are(packed, more, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    rows(packed, **more)


def test_damage_is_named(plan, tmp_path):
  """A shard that is cut, one that is missing, an index of another version, another tokenizer."""
  write_rows(str(tmp_path), plan, TOKENIZER)
  before = rows(tmp_path).fingerprint()
  with pytest.raises(ValueError, match="was written with tokenizer byte, not bpe-"):
    open_rows(
      ((f"arrayrecord:{tmp_path}", 1.0),), train_bpe(TEXTS, 300), length=16, batch=1, seed=0
    )
  shard = next(tmp_path.glob("train-00003*.array_record"))
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(ValueError, match=f"{shard.name} has .* bytes, by .*index.json"):
    rows(tmp_path)
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=shard.name):
    rows(tmp_path)
  index = json.loads((tmp_path / INDEX).read_text())
  index["splits"]["train"][3]["hash"] = "other"
  (tmp_path / INDEX).write_text(json.dumps(index | {"version": 2}))
  with pytest.raises(ValueError, match="version=2 must be 1"):
    rows(tmp_path)
  (tmp_path / INDEX).write_text(json.dumps(index))
  shard.write_bytes(b"\0" * index["splits"]["train"][3]["bytes"])
  assert rows(tmp_path).fingerprint() != before
