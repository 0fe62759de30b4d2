"""Policies beside the optimum, from the command line; what is told of them, by hand."""

import json
import pathlib
import re

import pytest

from dlm.sampling.policies import POLICIES
from tests.experiments import mains

MAIN = mains.load("experiments/studies/oracles.py")


def test_every_policy_is_measured_or_left_out_with_a_reason():
  measured = {name.split()[0] for name in MAIN.CURVES}
  left_out = {name for names in MAIN.LEFT_OUT for name in names.split(", ")}
  assert measured | left_out == set(POLICIES) and not measured & left_out
  assert all(len(curve) >= 2 for curve in MAIN.CURVES.values())


def test_settings_are_mixed_to_meet_a_speed():
  slow, fast = (8.0, 1.0), (2.0, 4.0)
  assert MAIN.mixed([slow, fast], 8) == 1 and MAIN.mixed([slow, fast], 9) == 1
  assert MAIN.mixed([slow, fast], 5) == 2.5
  assert MAIN.mixed([slow, fast, (4.0, 9.0)], 5) == 2.5, "a bad setting is not used"
  assert MAIN.mixed([slow, fast], 1) is None


def test_a_page_a_table_and_records(tmp_path):
  out = tmp_path / "out"
  done = mains.run(
    tmp_path, "experiments/studies/oracles.py", f"--out={out}", "--laws=shuffle,replace",
    "--methods=parts", "--samples=512",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads((out / "results.json").read_text())
  assert [(each["law"], each["setting"]) for each in found["measured"]] == [
    ("shuffle", "size 4"), ("replace", "size 4"), ("shuffle", "size 2"), ("replace", "size 2"),
  ]  # fmt: skip
  for each in found["measured"]:
    assert 1 <= each["forwards"] <= 8 and 0 <= each["valid"] <= 1
    assert each["valid"] <= each["most_valid"] + 0.1, "no better than the optimum, but for noise"
  assert found["optimum"]["shuffle"]["static_bits"][-1] == pytest.approx(0, abs=1e-9)
  table = (out / "table.md").read_text()
  assert re.search(r"\| optimum \|  \| 1\.4\d, \d+ % \| 0\.05, 96 % \|", table)
  page = (out / "report.html").read_text()
  assert page.count("<circle") == 4 and "credit" in page
  assert set(table.splitlines()) <= set(done.stdout.splitlines()) | {
    f"{k} tokens a forward" for k in (2, 4)
  }


@pytest.mark.parametrize(
  ("flag", "message"),
  [("--methods=magic", "'magic' is unknown; known: fixed random, "),
   ("--laws=murphy", "'murphy' is unknown; known: independent, ")],
)  # fmt: skip
def test_mistakes(tmp_path: pathlib.Path, flag: str, message: str):
  done = mains.run(tmp_path, "experiments/studies/oracles.py", flag, f"--out={tmp_path / 'out'}")
  assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()
