"""The folder of a run: made whole, one run's, one process's, and plain about what is wrong."""

import contextlib
import json
import pathlib

import pytest

from dlm import files, masks, workdir
from dlm.facts import ModelFacts
from dlm.workdir import CheckpointError, claimed

CONFIG = {"seed": 0, "steps": 4, "model": {"width": 32, "sizes": (1, 2)}}
FACTS = ModelFacts(259, (258,), None, 0, masks.Full(), vocab=260, length=8)
DATA = {"train": {"a.jsonl": "12 bytes, ab"}, "test": {"b.jsonl": "9 bytes, cd"}}


class Words:
  """A tokenizer, as far as the folder is concerned."""

  fingerprint = "words"

  def save(self, directory):
    (pathlib.Path(directory) / "words.txt").write_text("a b c")


def claim(folder, config=CONFIG, data=DATA):
  with claimed(folder, config, FACTS, Words(), data):
    pass


def names(folder):
  return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
  claim(tmp_path / "run")
  return tmp_path / "run"


def test_folder_is_self_contained_and_accepts_the_same_config(tmp_path, folder):
  assert names(folder) == {"config.json", "facts.json", "data.json", "words.txt"}
  assert names(tmp_path) == {"run"}
  claim(folder, CONFIG | {"steps": 9})
  assert workdir.read_json(folder, "config.json")["steps"] == 9
  assert workdir.read_facts(folder) == FACTS


def test_folder_of_another_config_is_refused_with_the_differences(folder):
  other = {"seed": 1, "steps": 9, "model": {"width": 64, "sizes": (1, 2), "depth": 2}}
  message = r"\(model.depth: 'absent' -> 2; model.width: 32 -> 64; seed: 0 -> 1\)"
  with pytest.raises(CheckpointError, match=message):
    claim(folder, other)
  assert json.loads((folder / "config.json").read_text())["steps"] == 4


def test_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(CheckpointError, match=r"no checkpoint folder: it holds no config.json"):
    claim(tmp_path)
  assert names(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (DATA | {"train": {"a.jsonl": "15 bytes, ef"}}, "'12 bytes, ab' -> '15 bytes, ef'"),
    (DATA | {"test": {}}, "test.b.jsonl: '9 bytes, cd' -> 'absent'"),
    (DATA | {"train": DATA["train"] | {"c.jsonl": "1"}}, "train.c.jsonl: 'absent' -> '1'"),
  ],
)
def test_data_that_changed_since_the_run_began_are_refused(folder, data, message):
  with pytest.raises(CheckpointError, match=message):
    claim(folder, data=data)
  claim(folder)


def test_tokenizer_that_changed_since_the_run_began_is_refused(folder, monkeypatch):
  monkeypatch.setattr(Words, "fingerprint", "other words")
  with pytest.raises(CheckpointError, match="tokenizer: 'words' -> 'other words'"):
    claim(folder)


def test_folder_of_an_older_version_learns_what_its_data_are(folder):
  (folder / "data.json").unlink()
  claim(folder)
  with pytest.raises(CheckpointError, match="the data of workdir"):
    claim(folder, data={})


def test_second_training_in_one_folder_is_refused_and_changes_nothing(folder):
  with claimed(folder, CONFIG, FACTS, Words(), DATA):
    with pytest.raises(ValueError, match=f"{folder} is being written by another process"):
      claim(folder, CONFIG | {"steps": 9})
    assert workdir.read_json(folder, "config.json")["steps"] == 4
  claim(folder, CONFIG | {"steps": 9})
  assert files.LOCK not in names(folder)


def test_folder_that_failed_on_the_way_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setattr(Words, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
  with pytest.raises(OSError, match=f"full: '{tmp_path}/run'"):
    claim(tmp_path / "run")
  assert names(tmp_path) == set()


def test_name_of_the_hub_gets_a_hint_how_to_fetch_it(tmp_path):
  name = "GSAI-ML/LLaDA-8B-Base"
  message = f"{name} is no checkpoint folder: it is not there; .* hf download {name} --local-dir"
  with pytest.raises(CheckpointError, match=message):
    workdir.read_facts(name)
  with pytest.raises(CheckpointError, match=f"{tmp_path}/none is no .*: it is not there$"):
    workdir.read_facts(tmp_path / "none")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"{}", "facts.json: field mask_id is missing"),
    (b"[]", r"facts.json must hold a table of fields, not '\[\]'"),
    (b'{"mask_id": ', "facts.json: not JSON"),
    (b"\xff", "facts.json: not JSON"),
    (b"[" * 100_000, "facts.json: not JSON .brackets are nested too deep"),
  ],
)
def test_damaged_facts_are_named(folder, content, message):
  (folder / "facts.json").write_bytes(content)
  with pytest.raises(CheckpointError, match=message):
    workdir.read_facts(folder)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("mask_id", None, "field mask_id is missing"),
    ("mask_id", "259", "mask_id='259' must be a whole number"),
    ("eos_ids", [999], r"eos_ids=\(999,\) must lie below vocab=260"),
    ("eos_ids", "258", "eos_ids='258' must be a list of ids"),
    ("eos_ids", [[258]], r"eos_ids=\[258\] must be a whole number"),
    ("attention", ["full"], r"attention=\['full'\] is unknown"),
    ("shift", True, "shift=True must be 0 or 1"),
    ("length", 0, "length=0 must be a whole number, at least 1"),
    ("vocab", 1e3, "vocab=1000.0 must be a whole number"),
  ],
)
def test_wrong_field_of_the_facts_is_named(folder, field, value, message):
  facts = json.loads((folder / "facts.json").read_text())
  (folder / "facts.json").write_text(json.dumps(facts | {field: value}))
  with pytest.raises(CheckpointError, match=f"facts.json: {message}"):
    workdir.read_facts(folder)


def test_only_the_first_process_of_several_writes_and_locks(tmp_path, folder, monkeypatch):
  monkeypatch.setattr("jax.process_index", lambda: 1)
  claim(tmp_path / "other")
  assert names(tmp_path) == {"run"}
  with contextlib.ExitStack() as both:
    both.enter_context(files.locked_folder(folder))
    both.enter_context(claimed(folder, CONFIG, FACTS, Words(), DATA))
  with pytest.raises(CheckpointError, match="seed: 0 -> 1"):
    claim(folder, CONFIG | {"seed": 1})
