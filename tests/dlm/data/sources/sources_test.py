"""Embedded text, files, TFDS: documents, splits and errors."""

import gzip
import json
import os

import pytest

from dlm.data import SPLITS, open_source
from dlm.data.sources import stdlib
from dlm.data.sources.example import split_of


def test_stdlib_holds_english_and_splits_by_document():
  train, test = (open_source("stdlib", split, include=("topics",)) for split in SPLITS)
  texts = [{e.completion for e in source.examples} for source in (train, test)]
  assert not texts[0] & texts[1]
  assert len(test) > 1 and sum(map(len, texts[0])) > 300_000
  assert any("statement" in text for text in texts[0])
  assert all(e.prompt == "" for e in train.examples)


def test_a_module_is_in_one_split_with_all_its_documents():
  where = {}
  for name, _, split in stdlib.documents(("docstrings", "source")):
    where.setdefault(name.split()[1].split(".")[0], set()).add(split)
  assert {frozenset(splits) for splits in where.values()} == {frozenset({s}) for s in SPLITS}


@pytest.mark.parametrize("include", [(), ("poems",)])
def test_stdlib_lists_its_kinds(include):
  with pytest.raises(ValueError, match="topics, docstrings, source"):
    open_source("stdlib", include=include)


def write_lines(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def test_jsonl_reads_all_spellings_and_splits_by_line(tmp_path):
  path = tmp_path / "a.jsonl"
  write_lines(
    path,
    [{"text": f"t{i}"} for i in range(80)]
    + [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(40)]
    + [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(40)],
  )
  train, test = (open_source(f"jsonl:{path}", split) for split in SPLITS)
  found = {(e.prompt, e.completion) for source in (train, test) for e in source.examples}
  assert len(train) + len(test) == len(found) == 160
  assert {("", "t0"), ("p1", "c1"), ("p1", "r1")} <= found
  assert 0 < len(test) < 40


def test_jsonl_takes_a_file_per_split(tmp_path):
  write_lines(tmp_path / "train.jsonl", [{"text": "a"}])
  write_lines(tmp_path / "test.jsonl", [{"text": "b"}, {"text": "c"}])
  spec = f"jsonl:{tmp_path}/{{split}}.jsonl"
  assert [len(open_source(spec, split)) for split in SPLITS] == [1, 2]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{not json", "not JSON"),
    ("[1]", "must be an object"),
    ('{"prompt": "a"}', r"has \['prompt'\]"),
    ('{"text": 3}', "as strings"),
    ('{"text": "\\ud800"}', r"'\\ud800' is half of a character"),
  ],
)
def test_jsonl_errors_name_the_line(tmp_path, line, message):
  path = tmp_path / "train.jsonl"
  path.write_text('{"text": "fine"}\n\n' + line + "\n", encoding="utf-8")
  with pytest.raises(ValueError, match=rf"train.jsonl, line 3: .*{message}"):
    open_source(f"jsonl:{tmp_path}/{{split}}.jsonl")


def texts(spec, split="train"):
  return [example.completion for example in open_source(spec, split).examples]


def test_files_as_people_have_them_are_one_source(tmp_path):
  """With a byte order mark, gzipped, several of them, by a pattern."""
  records = ['{"text": "a\u2028b"}\r\n', '{"text": "c", "prompt": null}\n', '\n{"text": "d"}']
  names = ["train-1.jsonl", "train-2.jsonl.gz", "train-3.json"]
  for name, record in zip(names, records, strict=True):
    packed = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(packed(b"\xef\xbb\xbf" + record.encode()))
  several = ",".join(str(tmp_path / name) for name in names)
  assert texts(f"jsonl:{tmp_path}/{{split}}-*") == ["a\u2028b", "c", "d"]
  assert texts(f"jsonl:{several}".replace("train", "{split}")) == ["a\u2028b", "c", "d"]
  assert sorted(open_source(f"jsonl:{tmp_path}/{{split}}-*").fingerprint()) == several.split(",")


def test_every_line_of_several_files_is_in_one_split(tmp_path):
  for name in "ab":
    write_lines(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(200)])
  train, test = (texts(f"jsonl:{tmp_path}/*.jsonl", split) for split in SPLITS)
  assert len(train) + len(test) == len({*train, *test}) == 400
  assert {text[0] for text in test} == {"a", "b"}
  assert {text[1:] for text in test if text[0] == "a"} != {x[1:] for x in test if x[0] == "b"}
  alone = texts(f"jsonl:{tmp_path}/a.jsonl", "test")
  assert alone == [f"a{i}" for i in range(200) if split_of(f"line {i + 1}") == "test"]


def test_rows_of_parquet_are_lines_of_json(tmp_path):
  parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
  records = [{"text": None, "prompt": f"p{i}", "completion": f"c{i}", "n": i} for i in range(40)]
  records += [{"text": f"t{i}", "prompt": None, "completion": None, "n": i} for i in range(40)]
  parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "a.parquet")
  write_lines(tmp_path / "a.jsonl", records)
  for split in SPLITS:
    rows, lines = (
      open_source(f"{kind}:{tmp_path}/a.{kind}", split) for kind in ("parquet", "jsonl")
    )
    assert rows.examples == lines.examples and len(rows)
  (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
  with pytest.raises(ValueError, match=f"{tmp_path}/b.parquet cannot be read after row 0: "):
    open_source(f"parquet:{tmp_path}/b.parquet")
  parquet.write_table(arrow.table({"content": ["a"]}), tmp_path / "train.parquet")
  with pytest.raises(ValueError, match=r"train.parquet, line 1: needs .text., .* has \[\]"):
    open_source(f"parquet:{tmp_path}/{{split}}.parquet")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (gzip.compress(b'{"text": "a"}\n' * 99)[:-12], "train.jsonl is damaged"),
    (b'{"text": "a"}\n"\xff"\n', "train.jsonl, line 2: not JSON .'utf-8' codec"),
    (b"[" * 100_000, "train.jsonl, line 1: not JSON .brackets are nested too deep"),
    (None, "there is no file .*train.jsonl"),
    ("pipe", "train.jsonl is no regular file"),
    ("folder", "train.jsonl is no regular file"),
  ],
  ids=["cut_gzip", "not_utf8", "nested", "absent", "pipe", "folder"],
)
def test_damaged_files_are_named(tmp_path, content, message):
  path = tmp_path / "train.jsonl"
  if content == "pipe":
    os.mkfifo(path)
  elif content == "folder":
    path.mkdir()
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    open_source(f"jsonl:{tmp_path}/{{split}}.jsonl")


@pytest.mark.parametrize(
  "options",
  [{"size": 1e9}, {"size": 2**70}, {"alphabet": 3}, {"items": 4}, {"items": ("a", 4)}, {"x": 1}],
)
def test_option_of_a_wrong_kind_is_refused(options):
  with pytest.raises(ValueError, match="lists"):
    open_source("lists", **options)


def test_an_empty_source_is_refused(tmp_path):
  (tmp_path / "train.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="is empty"):
    open_source(f"jsonl:{tmp_path}/{{split}}.jsonl")


@pytest.mark.parametrize("spec", ["stdlibs", "jsonl", "jsonl:", "stdlib:x", "tokens:x"])
def test_unknown_sources_list_the_known(spec):
  with pytest.raises(
    ValueError, match="known: stdlib, lists, jsonl:PATH, parquet:PATH, dataset:DIR, re"
  ):
    open_source(spec)


def test_unknown_split():
  with pytest.raises(ValueError, match="known: train, test"):
    open_source("stdlib", "valid")


def test_tfds_is_written_and_read_without_tensorflow(tmp_path):
  stdlib_text = pytest.importorskip("dlm.data.stdlib_text")
  stdlib_text.prepare(str(tmp_path), "topics")
  for split in SPLITS:
    source = open_source("tfds:stdlib_text:topics", split, data_dir=str(tmp_path))
    memory = open_source("stdlib", split, include=("topics",))
    assert {source[i].completion for i in range(len(source))} == {
      e.completion for e in memory.examples
    }
    (version,) = source.fingerprint()
    assert version == "stdlib_text/topics/1.0.0"
  with pytest.raises(ValueError, match=r"has no field 'words'; has .*text"):
    open_source("tfds:stdlib_text:topics", data_dir=str(tmp_path), field="words")


def test_tfds_says_how_to_prepare_what_is_not_there(tmp_path):
  pytest.importorskip("dlm.data.stdlib_text")
  with pytest.raises(ValueError, match=r"not prepared in .*download_and_prepare"):
    open_source("tfds:stdlib_text:prose", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="no dataset 'no_such_set'"):
    open_source("tfds:no_such_set", data_dir=str(tmp_path))


def test_fingerprints_change_with_what_a_source_is_made_of(tmp_path):
  path = tmp_path / "a.jsonl"
  write_lines(path, [{"text": f"t{i}"} for i in range(80)])
  spec = f"jsonl:{path}"
  (first,) = open_source(spec).fingerprint().items()
  assert first == (str(path), open_source(spec, "test").fingerprint()[str(path)])
  write_lines(path, [{"text": f"T{i}"} for i in range(80)])  # of equal size
  assert first[1] != open_source(spec).fingerprint()[str(path)]

  topics = [open_source("stdlib", split, include=("topics",)) for split in SPLITS]
  for one, other in ((open_source("lists"), open_source("lists", seed=1)), topics):
    assert one.fingerprint() == one.fingerprint() != other.fingerprint()
