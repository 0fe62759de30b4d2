"""Embedded text, files, TFDS: documents, splits and errors."""

import json

import pytest

from dlm.data import SPLITS, open_source
from dlm.data.sources import stdlib


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
  ],
)
def test_jsonl_errors_name_the_line(tmp_path, line, message):
  path = tmp_path / "train.jsonl"
  path.write_text('{"text": "fine"}\n\n' + line + "\n", encoding="utf-8")
  with pytest.raises(ValueError, match=rf"train.jsonl:3: .*{message}"):
    open_source(f"jsonl:{tmp_path}/{{split}}.jsonl")


def test_an_empty_source_is_refused(tmp_path):
  (tmp_path / "train.jsonl").write_text("\n")
  with pytest.raises(ValueError, match="is empty"):
    open_source(f"jsonl:{tmp_path}/{{split}}.jsonl")


@pytest.mark.parametrize("spec", ["stdlibs", "jsonl", "jsonl:", "stdlib:x", "tokens:x"])
def test_unknown_sources_list_the_known(spec):
  with pytest.raises(ValueError, match="known: stdlib, lists, jsonl:PATH, tfds:NAME"):
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
