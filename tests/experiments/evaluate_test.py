import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dlm import build, checkpoint, train
from tests.experiments import mains

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = {
  "seed": 0,
  "steps": 2,
  "batch": 8,
  "model": {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 48},
  "objective": {"name": "bd3lm", "block": 8},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  train.train(build.everything(CONFIG), workdir)
  return workdir


def evaluate(*arguments):
  return subprocess.run(
    [sys.executable, "experiments/evaluate.py", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_prints_the_bound_in_three_units(tmp_path, folder):
  out = tmp_path / "out.json"
  done = evaluate(f"--checkpoint={folder}", "--batches=3", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert "step 2, test split, estimator ExactCount(mask_id=259, block=8" in done.stdout
  assert "24 sequences" in done.stdout
  nats, bits = (
    float(re.search(rf"{name}/token +([0-9.]+) \+-", done.stdout)[1]) for name in ("nats", "bits")
  )
  assert 3 < nats < 7  # hardly trained: about log(260)
  assert bits == pytest.approx(nats / 0.6931, rel=1e-3)
  found = json.loads(out.read_text())
  assert found["nats_per_token"] == pytest.approx(nats, abs=1e-4)
  assert (found["sequences"], found["split"]) == (24, "test")


def test_answers_to_tasks_are_counted(tmp_path, folder):
  out = tmp_path / "out.json"
  done = evaluate(
    f"--checkpoint={folder}", "--config=configs/sample/default.py", "--config.slots=64",
    "--config.max_new_tokens=8", "--task=lists:copy,sort", "--size=2", "--shots=1", f"--out={out}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert f"{folder} step 2, 4 problems\ncopy  " in done.stdout
  found = json.loads(out.read_text())
  assert [*found["tasks"]] == ["copy", "sort"] and found["problems"]["shots"] == 1
  assert found["tasks"]["copy"]["n"] == 2 and len(found["answers"]) == 4
  scores = [each["score"] for each in found["answers"] if each["task"] == "sort"]
  assert found["tasks"]["sort"]["right"] == sum(scores)
  assert found["answers"][0]["prompt"].count("cpy ") == 2


def test_a_suite_tells_accuracy_against_tokens_per_forward_and_costs(tmp_path, folder):
  out = tmp_path / "out"
  done = evaluate(
    f"--checkpoint={folder}", "--config=configs/sample/default.py", "--config.slots=256",
    "--config.max_new_tokens=8", "--config.stop=never", "--task=parallel_bench:copy,sort",
    "--size=1", "--samples=2", "--sweep=policy.threshold=0.9,0.001", f"--out={out}",
    "--suite=quick", "--name=tiny",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for told in ("pass@2 0.0 %", "sort  threshold  AUP 0.0", "all tasks  PB90 none, PB80 none"):
    assert told in done.stdout
  found = json.loads((out / "results.json").read_text())
  slow, fast = (run["tasks"]["copy"] for run in found["runs"])
  assert slow["n"] == 2 and slow["tokens_per_forward"] < fast["tokens_per_forward"]
  assert [p["setting"] for p in found["curves"] if p["task"] == "copy"] == [
    "policy.threshold=0.9", "policy.threshold=0.001", "oracle",
  ]  # fmt: skip
  assert {p["n"] for p in found["curves"]} == {1}, "two answers to one problem"
  cost = found["runs"][0]["cost"]
  assert cost["peak_compute_utilisation"] > 0 and 0 < cost["average_memory_utilisation"] < 1
  assert cost["energy"]["source"] in ("rapl", "none") and "energy: " in done.stdout
  assert (cost["joules_per_token"] is None) == (cost["energy"]["source"] == "none")
  assert dict(map(tuple, found["facts"]))["checkpoint"] == f"{folder}, step 2"
  page = (out / "report.html").read_text()
  assert "tiny: parallel_bench:copy,sort" in page and '"setting":"threshold=0.001"' in page


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--step=7",), "holds no step 7; it holds 2"),
    (("--estimator=elbo",), "known: ar, bd3lm"),
    (("--task=lists",), "--task needs --config, which says how to sample"),
    (
      ("--task=lists:copy", "--config=configs/sample/default.py", "--sweep=block"),
      "--sweep=block must be FIELD=VALUE,VALUE",
    ),
    (("--out=/none/out.json",), "/none/out.json cannot be written: /none is not a folder"),
    (("--sweep=block=1,2",), "--sweep does nothing without --task; it is read with --suite"),
  ],
)
def test_mistake_is_one_line_and_exit_code_2(folder, arguments, message):
  done = evaluate(f"--checkpoint={folder}", *arguments)
  assert done.returncode == 2
  assert message in done.stderr and done.stderr.count("\n") == 1


def test_folder_without_a_checkpoint_is_refused(tmp_path):
  done = evaluate(f"--checkpoint={tmp_path}")
  assert done.returncode == 2 and "holds no config.json" in done.stderr
  with pytest.raises(checkpoint.CheckpointError):
    checkpoint.restore_params(tmp_path)


def test_weights_of_few_bits_are_measured_against_those_stored(tmp_path, folder):
  out = tmp_path / "out.json"
  done = mains.run(
    tmp_path, "experiments/studies/quantised.py", f"--checkpoint={folder}", "--batches=2",
    "--formats=int8,int4g8", f"--out={out}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  stored, eight, four = json.loads(out.read_text())["table"]
  assert (stored["weights"], eight["weights"], four["weights"]) == ("as stored", "int8", "int4g8")
  assert stored["more than as stored"] == 0 and stored["decisions kept, %"] == 100
  assert 0 < abs(eight["more than as stored"]) < abs(four["more than as stored"]) < 0.5
  assert four["of the bytes"] < eight["of the bytes"] < 0.8
  assert "decisions kept, %" in done.stdout
