"""The command as a user types it, in processes of its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = "--config=configs/train/tiny.py"


def command(*arguments):
  return [sys.executable, "experiments/train.py", *map(str, arguments)]


def environment():
  return os.environ | {"PYTHONPATH": str(ROOT)}


def run(*arguments):
  return subprocess.run(
    command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
  )


def test_run_stopped_by_sigterm_goes_on_from_there(tmp_path):
  arguments = (TINY, f"--workdir={tmp_path / 'run'}", "--config.steps=1000000")
  with subprocess.Popen(
    command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
  ) as process:
    for line in process.stdout:
      if line.startswith("step 20/"):
        process.send_signal(signal.SIGTERM)
        break
    last = process.stdout.read().splitlines()[-1]
  assert process.returncode == 143
  stopped = int(last.removeprefix("stopped and saved at step ").partition(";")[0])

  steps = stopped + 40
  resumed = run(*arguments[:2], f"--config.steps={steps}")
  assert resumed.returncode == 0, resumed.stderr
  assert resumed.stderr == ""
  assert f"resumed at step {stopped}" in resumed.stdout

  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  losses = {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}
  assert losses[steps] < losses[10] - 0.5
  assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((TINY, "--config.optimizer.lrr=1"), "config.optimizer.lrr is unknown; known: b1, "),
    ((TINY, "--config.steps=many"), "config.steps='many' must be of type int"),
    ((TINY, "--config.data.sources=(('books', 1.0),)"), "books"),
    (("--config=configs/train/none.py",), "configs/train/none.py"),
    ((TINY, "--stepz=3"), "Unknown command line flag 'stepz'"),
  ],
  ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_mistake_is_one_line_exit_code_2_and_nothing_written(tmp_path, arguments, message):
  done = run(*arguments, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert message in done.stderr and done.stderr.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_workdir_of_another_config_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"seed": 1}')
  done = run(TINY, f"--workdir={tmp_path}")
  assert done.returncode == 2
  assert "seed: 1 -> 0" in done.stderr and done.stderr.count("\n") == 1
  assert (tmp_path / "config.json").read_text() == '{"seed": 1}'


def test_loss_that_is_not_finite_ends_with_1(tmp_path):
  done = run(
    TINY,
    f"--workdir={tmp_path / 'run'}",
    "--config.optimizer.lr=1e30",
    "--config.optimizer.clip=1e9",
  )
  assert done.returncode == 1
  assert "at step" in done.stderr and done.stderr.count("\n") == 1
