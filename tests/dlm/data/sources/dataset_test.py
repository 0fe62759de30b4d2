"""Folders as `save_to_disk` of the package datasets (5.2.0) writes them, made here by pyarrow."""

import json

import pytest

from dlm.completions import read_prompts
from dlm.data import lines, open_source
from dlm.data.chat import read_conversations

arrow = pytest.importorskip("pyarrow")

TALKS = [
  {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
  for i in range(40)
]


def saved(folder, rows, shards=1, **state):
  """One dataset, in so many files of two batches each or more."""
  folder.mkdir(parents=True)
  table = arrow.Table.from_pylist(rows)
  names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
  for i, name in enumerate(names):
    part = table.slice(i * len(rows) // shards, len(rows) // shards)
    with arrow.ipc.new_stream(folder / name, table.schema) as stream:
      stream.write_table(part, max_chunksize=max(len(part) // 2, 1))
  state = {"_data_files": [{"filename": name} for name in names], "_split": None} | state
  (folder / "state.json").write_text(json.dumps(state))
  (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
  return folder


def saved_splits(folder, **rows):
  for name, its in rows.items():
    saved(folder / name, its)
  (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*rows]}))
  return folder


def said(source):
  return [source[i].completion for i in range(len(source))]


def test_rows_of_a_dataset_are_lines_of_json(tmp_path):
  """Of one file or several, and no row is in both splits."""
  one, two = saved(tmp_path / "one", TALKS), saved(tmp_path / "two", TALKS, shards=2)
  path = tmp_path / "all.jsonl"
  path.write_text("".join(json.dumps(each) + "\n" for each in TALKS))
  for split in ("train", "test"):
    want = said(open_source(f"jsonl:{path}", split))
    assert said(open_source(f"dataset:{one}", split)) == want
    assert said(open_source(f"dataset:{two}", split)) == want
  assert len(open_source(f"dataset:{two}").fingerprint()) == 2
  before = open_source(f"dataset:{one}").fingerprint()
  saved(tmp_path / "three", TALKS[1:])
  assert [*before.values()] != [*open_source(f"dataset:{tmp_path}/three").fingerprint().values()]


def test_splits_of_a_folder_are_its_own(tmp_path):
  both = saved_splits(tmp_path / "both", train=TALKS[:5], validation=TALKS[5:7])
  assert said(open_source(f"dataset:{both}")) == [f"q{i}\na{i}" for i in range(5)]
  assert said(open_source(f"dataset:{both}", "test")) == ["q5\na5", "q6\na6"]
  alone = saved_splits(tmp_path / "alone", train=TALKS)
  apart = [said(open_source(f"dataset:{alone}", split)) for split in ("train", "test")]
  assert sorted(apart[0] + apart[1]) == sorted(
    said(open_source(f"dataset:{alone}/train"))
    + said(open_source(f"dataset:{alone}/train", "test"))
  )
  assert len(apart[1]) and len(apart[0]) + len(apart[1]) == 40
  named = saved_splits(tmp_path / "named", train=TALKS[:2], test=TALKS[2:3])
  assert said(open_source(f"dataset:{named}/{{split}}", "test")) == ["q2\na2"]


def test_prompts_are_read_from_any_kind_of_file(tmp_path):
  """What holds prompts need not be named: the file says it."""
  rows = [{"prompt": "a", "infill": None}, {"prompt": "b[[1]]", "infill": True}]
  folder = saved(tmp_path / "asked", rows)
  arrow.parquet = pytest.importorskip("pyarrow.parquet")
  arrow.parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "asked.parquet")
  (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b[[1]]", "infill": true}\n')
  for path in (folder, tmp_path / "asked.parquet", tmp_path / "asked.jsonl"):
    assert [(each.text, each.infill) for each in read_prompts(path)] == [
      ("a", False), ("b[[1]]", True)
    ]  # fmt: skip
  talks = read_conversations(saved(tmp_path / "talks", TALKS))
  assert [dict(talk.messages[0]) for talk in talks[:2]] == [t["messages"][0] for t in TALKS[:2]]
  mixed = f"{folder},{tmp_path}/asked.*"
  assert [line.value["prompt"] for line in lines.read(mixed)] == ["a", "b[[1]]"] * 3


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda path: path.write_bytes(path.read_bytes()[:-8]), "is no whole Arrow stream"),
    (lambda path: path.write_bytes(b""), "is no whole Arrow stream"),
    (lambda path: path.write_bytes(b"x" * 90 + path.read_bytes()[90:]), "cannot be read after row"),
    (lambda path: path.unlink(), "No such file or directory"),
  ],
)
def test_damaged_file_is_named(tmp_path, damage, message):
  folder = saved(tmp_path / "one", TALKS)
  damage(folder / "data-00000-of-00001.arrow")
  with pytest.raises((ValueError, OSError), match=message) as told:
    open_source(f"dataset:{folder}")
  assert "data-00000-of-00001.arrow" in str(told.value)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("state.json", {}, r"state.json: _data_files=None must be a list of objects"),
    (
      "state.json",
      {"_data_files": [{"filename": "../x"}]},
      r"filenames \['../x'\] must be names of",
    ),
    ("state.json", {"_data_files": [], "_indices_data_files": [{}]}, "after flatten_indices"),
    ("dataset_dict.json", {"splits": ["train", "a/b"]}, "must be a list of names"),
    ("dataset_dict.json", {"splits": ["train_sft"]}, "holds the splits train_sft: name one"),
  ],
)
def test_folder_that_says_nonsense_is_named(tmp_path, name, value, message):
  (tmp_path / name).write_text(json.dumps(value))
  with pytest.raises(ValueError, match=message):
    open_source(f"dataset:{tmp_path}")


def test_folder_that_is_no_dataset_is_refused(tmp_path):
  with pytest.raises(ValueError, match="is no regular file"):
    open_source(f"dataset:{tmp_path}")
  both = saved_splits(tmp_path / "both", train=TALKS, test=TALKS)
  with pytest.raises(ValueError, match=r"holds the splits train, test: name one, as .*/both/NAME"):
    read_prompts(both)
  with pytest.raises(ValueError, match="is no regular file"):
    read_prompts(tmp_path)
