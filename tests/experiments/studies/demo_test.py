"""The demo end to end, in a process of its own: three settings, sixty updates."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
SHORT = (
  "import experiments.studies.demo as demo; demo.SPEEDS = (1,);"
  "demo.GREEDY = tuple(g for g in demo.GREEDY if g[:2] in demo.SHOWN); demo.command.run(demo.main)"
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  folder = tmp_path_factory.mktemp("demo") / "run"
  done = subprocess.run(
    [sys.executable, "-c", SHORT, f"--workdir={folder}", "--steps=60", "--problems=2"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def test_it_trains_shows_compares_and_reports(ran):
  folder, said = ran
  assert re.search(r"step 60/60 +loss \d", said)
  assert said.index("1/4 train") < said.index("2/4 watch") < said.index("3/4 compare")
  assert re.search(r"confidence +k=1 +\d+\.\d @ 0\.\d+ ", said), (
    "one token at a time, a stop beside"
  )
  assert (folder / "picture.png").stat().st_size < 300_000


def test_the_page_holds_every_task_trace_and_hole(ran):
  page = (ran[0] / "report.html").read_text()
  data = json.loads(re.search(r"<script[^>]*json[^>]*>(.*?)</script>", page, re.S)[1])
  assert {p["task"] for p in data["curves"]} == {
    "mean", "copy", "reverse", "shuffle", "infill",
  }  # fmt: skip
  assert len(data["traces"]) == 4 * 3 and len(data["infills"]) == 6 and len(data["shuffle"]) == 1
  assert [row["task"] for row in data["determined"]] == ["copy", "reverse"]
  baseline, *fillings = data["fillings"]
  assert baseline["tpf"] is None and baseline["whole"] == 0 < baseline["characters"]
  assert {(f["policy"], f["setting"]) for f in fillings} == {
    (f["policy"], f["setting"]) for f in data["infills"][0]["filled"]
  }
  assert {point["split"] for point in data["losses"]} == {"train", "eval"}
  assert all(0 <= p["accuracy"] <= 100 and p["tpf"] > 0 for p in data["curves"])
