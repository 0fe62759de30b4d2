"""A model's own answers become training data: from a checkpoint to rows whose ids were sampled."""

import json

import pytest

from dlm import build, data
from dlm.data.sources.example import split_of
from tests.dlm.build import directories
from tests.experiments import mains

CONFIG = "--config=configs/sample/ar.py"
ROOM = (
  "--config.slots=64", "--config.max_new_tokens=16", "--config.temperature=1", "--config.batch=32",
  "--config.row_tile=0", "--samples=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return directories.write(tmp_path_factory.mktemp("models") / "llm")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
  path = tmp_path_factory.mktemp("asked") / "in.jsonl"
  path.write_text('"the cat"\n"sat on"\n{"prompt": "the mat"}\n"a"\n')
  return path


def generate(tmp_path, *arguments):
  return mains.run(tmp_path, "experiments/generate_data.py", *arguments)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_become_rows_of_training(tmp_path, folder, asked):
  """tests/dlm/answers_test.py shows that the rows hold the ids that were sampled."""
  out = tmp_path / "train.jsonl"
  arguments = (
    f"--out={out}", CONFIG, f"--checkpoint={folder}", *ROOM, f"--source=jsonl:{asked}",
    "--split=all",
  )  # fmt: skip
  done = generate(tmp_path, "--keep=all", *arguments)
  assert done.returncode == 0 and done.stderr == "" and "32/32 prompts" in done.stdout
  found = lines(out)
  assert [[each["id"], each["sample"]] for each in found] == [[i // 8, i % 8] for i in range(32)]
  assert {each["prompt_source"] for each in found} == {f"jsonl:{asked}"}

  tokenizer = build.pretrained(folder).tokenizer
  (tmp_path / "test.jsonl").write_text(out.read_text())
  rows = data.open_rows(
    ((f"jsonl:{tmp_path}/{{split}}.jsonl", 1.0),), tokenizer, length=64, batch=32, seed=0,
    shuffle=False, mode="pad",
  )[0]  # fmt: skip
  for tokens_L, noisable_L, line in zip(rows.tokens_BxL, rows.noisable_BxL, found, strict=True):
    user, assistant = line["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert tokenizer.decode(tokens_L[noisable_L]) == assistant["content"]
    assert user["content"] in tokenizer.decode(tokens_L[~noisable_L])

  whole = [each for each in found if each["reason"] == "stop_id" and each["reads_back"]]
  done = generate(tmp_path, *arguments)
  assert done.returncode == 0 and lines(out) == whole and 0 < len(whole) < len(found)
  assert "did not end by itself (length)" in done.stdout


def test_prompts_without_answers_need_no_checkpoint(tmp_path):
  """Held-out ones, which sample.py --chat reads."""
  out = tmp_path / "asked.jsonl"
  done = generate(tmp_path, f"--out={out}", "--prompts_only", "--split=test", "--size=5")
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"{out}: 10 prompts\n"
  found = lines(out)
  assert [each["prompt_source"] for each in found] == ["everyday"] * 5 + ["stdlib"] * 5
  (only,) = found[0]["messages"]
  assert only["role"] == "user" and split_of(only["content"]) == "test"


def test_another_jobs_file_is_refused(tmp_path, folder, asked):
  out = tmp_path / "out.jsonl"
  part = tmp_path / "out.jsonl.part"
  part.write_text('{"job": "of somebody else"}\n')
  done = generate(
    tmp_path, CONFIG, f"--checkpoint={folder}", f"--out={out}", f"--source=jsonl:{asked}", *ROOM
  )
  assert done.returncode == 2 and "belongs to another job" in done.stderr
  assert part.read_text() == '{"job": "of somebody else"}\n'


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--source=nothing"],
      "unknown source of prompts 'nothing'; known: everyday, stdlib, reasoning",
    ),
    (["--source=jsonl:{tmp}/none.jsonl"], "there is no file {tmp}/none.jsonl"),
    (
      ["--source=jsonl:{tmp}/said.jsonl"],
      "said.jsonl, line 1: nothing is asked before the assistant's message",
    ),
    (["--size=1", "--seed=-1"], "seed=-1"),
    (["--source=everyday", "--size=1"], "--config is missing"),
  ],
)
def test_mistake_is_one_line(tmp_path, arguments, message):
  said = [{"role": "assistant", "content": "b"}]
  (tmp_path / "said.jsonl").write_text(json.dumps({"messages": said}) + "\n")
  arguments = [each.format(tmp=tmp_path) for each in arguments]
  done = generate(tmp_path, f"--out={tmp_path}/out.jsonl", *arguments)
  assert (done.returncode, done.stdout) == (2, "")
  assert message.format(tmp=tmp_path) in done.stderr and done.stderr.count("\n") == 1
