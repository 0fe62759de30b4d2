"""The page about SmolLM2, from the command line, on a tiny model with an adapter of one update."""

import json
import re

import pytest

from dlm import build, train
from tests.dlm.build import directories
from tests.dlm.train_adapters_test import table
from tests.experiments import mains


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """What is printed, and the folder."""
  where = tmp_path_factory.mktemp("smollm")
  base = directories.write(where / "base")
  train.train(build.everything(table(base, steps=1)), where / "run")
  build.write_adapter(where / "adapter", build.pretrained(where / "run"))
  done = mains.run(
    where,
    "experiments/studies/smollm.py",
    f"--checkpoint={base}",
    f"--adapter={where / 'adapter'}",
    f"--workdir={where / 'page'}",
    "--prompts=2",
    "--tokens=6",
    "--slots=256",
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, where / "page"


def test_every_way_writes_the_same_text(made):
  printed, folder = made
  rows = re.findall(r"^(token by token|drafted) +(\d ahead)? +(\d) .* (\d) of (\d)$", printed, re.M)
  assert {row[:3] for row in rows} == {
    ("token by token", "", "0"),
    ("drafted", "1 ahead", "0"),
    ("drafted", "2 ahead", "0"),
    ("token by token", "", "1"),
    ("drafted", "2 ahead", "1"),
  }
  assert {row[3:] for row in rows} == {("2", "2")}
  answers = [json.loads(line) for line in (folder / "decoded.jsonl").read_text().splitlines()]
  assert len(answers) == 10
  for temperature in (0, 1):
    texts = [each["tokens"] for each in answers if each["temperature"] == temperature]
    assert texts[:2] == texts[2:4]


def test_page_shows_what_was_measured(made):
  printed, folder = made
  page = (folder / "report.html").read_text()
  told = re.search(r'<script type="application/json" id="report">(.*)</script>', page)
  data = json.loads(told[1])
  plain, *others = data["speeds"]
  assert plain["faster"] == 1 and plain["same"] == plain["n"] == 2
  assert all(each["tokens"] >= each["n"] for each in others)
  assert len(data["traces"]) == 4  # two questions, plain and drafted
  assert str(folder / "report.html") in printed
