"""The command that answers with tools."""

import json

import pytest

from tests.experiments import mains, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  tiny.trained(folder / "model", length=64)
  documents = [{"title": "a", "text": "one"}, {"title": "b", "text": "two"}]
  (folder / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
  return folder


def run(tmp_path, folder, *arguments):
  fields = {
    "policy.first": 3, "policy.last": 7, "policy.forced": "((3, 60), (7, 62))", "block": 8,
    "max_new_tokens": 8, "slots": 64,
  }  # fmt: skip
  return mains.run(
    tmp_path, "experiments/agent.py", "--config=configs/sample/p_react.py",
    "--answer_config=configs/sample/default.py", f"--checkpoint={folder / 'model'}",
    f"--corpus={folder / 'documents.jsonl'}", "--before=[", "--after=]", "--response_tokens=8",
    "--answer_tokens=4", "--prompt=ab", *(f"--config.{k}={v}" for k, v in fields.items()),
    *arguments,
  )  # fmt: skip


def test_every_turn_is_kept(tmp_path, folder):
  out = tmp_path / "out.jsonl"
  done = run(tmp_path, folder, f"--out={out}")
  assert (done.returncode, done.stderr) == (0, "")
  (line,) = map(json.loads, out.read_text().splitlines())
  assert line["prompt"] == "ab" and len(line["turns"]) == 1
  for turn in line["turns"]:
    assert turn["text"][3] == "<" and turn["response"] and turn["called"] < turn["forwards"]


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.policy.forced=()", "must force the tokens around a call"),
    ("--turns=9", "prompt 0: 2 tokens, 9 turns of at most 18"),
    ("--hits=0", "hits=0 must be at least 1"),
    ("--corpus=nowhere.jsonl", "there is no file nowhere.jsonl"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, folder, argument, message):
  done = run(tmp_path, folder, argument)
  assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
