"""Two real processes, which meet by jax's coordination service and compute together by gloo."""

import json
import os
import signal
import socket
import time

import jax
import numpy as np
import pytest

from dlm import checkpoint
from tests.experiments import mains

FIELDS = {
  "batch": 4,
  "steps": 4,
  "log_every": 1,
  "data.length": 16,
  "optimizer.warmup": 0,
  "eval.every": 4,
  "eval.batches": 1,
  "checkpoint.every": 2,
  "checkpoint.keep_best": 0,
  "sample.every": 4,
}
PATIENCE = 5  # where one is killed; a busy machine may be silent as long without a reason


def trained(run, **fields):
  changed = FIELDS | fields
  said = (f"--config.{name}={value}" for name, value in changed.items())
  return ["experiments/train.py", "--config=configs/train/tiny.py", f"--workdir={run}", *said]


def start(folder, argv, patience=60):
  """The main in two processes; what each prints is in out.P and err.P."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  where = ["--distributed", f"--coordinator=localhost:{port}", "--processes=2"]
  started = []
  for process in range(2):
    own = [*map(str, argv), *where, f"--process={process}", f"--patience={patience}"]
    out, err = folder / f"out.{process}", folder / f"err.{process}"
    started.append(mains.PROCESSES.Process(target=mains.call, args=(own, out, err)))
    started[-1].start()
  return started


def ended(started):
  for each in started:
    each.join(120)
  return [each.exitcode for each in started]


def records(run, *names):
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return [(line["step"], name, line[name]) for line in lines for name in names if name in line]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """Fields of a run on rows of ArrayRecord files, which two processes write and each reads."""
  folder = tmp_path_factory.mktemp("rows")
  asked = ["--source=stdlib", '--option=include=("topics",)', "--length=16", "--shards=3"]
  both = start(folder, ["experiments/prepare_data.py", *asked, f"--out={folder / 'rows'}"])
  assert ended(both) == [0, 0], (folder / "err.0").read_text()
  assert "3 shards written" in (folder / "out.0").read_text()
  return {"data.sources": ((f"arrayrecord:{folder / 'rows'}", 1.0),)}


@pytest.fixture(scope="module")
def runs(stored, tmp_path_factory):
  """The same run by one process and by two."""
  folder = tmp_path_factory.mktemp("runs")
  assert mains.run(folder, *trained(folder / "one", **stored)).returncode == 0
  both = ended(start(folder, trained(folder / "two", **stored)))
  assert both == [0, 0], (folder / "err.0").read_text()
  return folder


def test_two_processes_train_as_one_does(runs):
  losses = [
    [value for *_, value in records(runs / run, "loss", "eval/loss")] for run in ("one", "two")
  ]
  assert len(losses[0]) == 5
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_samples_along_the_way_are_those_of_one(runs):
  (found,), (alone,) = (records(runs / run, "samples") for run in ("two", "one"))
  assert found == alone and alone[0] == 4


def test_the_first_process_alone_writes(runs):
  names = [{path.name.split(".")[0] for path in (runs / run).iterdir()} for run in ("one", "two")]
  assert names[0] == names[1]
  assert "step 4/4" in (runs / "out.0").read_text()
  assert "step" not in (runs / "out.1").read_text()
  assert (runs / "err.1").read_text() == ""


def test_one_process_reads_what_two_have_saved(runs):
  (one, _), (two, step) = (
    checkpoint.restore_params(runs / run, "latest") for run in ("one", "two")
  )
  assert step == 4
  for found, alone in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)


def test_prompts_are_shared_out_and_come_back_in_order(runs):
  prompts = runs / "prompts.jsonl"
  prompts.write_text('"The"\n"A longer"\n"One"\n')
  asked = [
    "experiments/sample.py", f"--checkpoint={runs / 'one'}", "--config=configs/sample/default.py",
    f"--prompts={prompts}", "--config.batch=2",
  ]  # fmt: skip
  assert mains.run(runs, *asked, f"--out={runs / 'alone.jsonl'}").returncode == 0
  found = ended(start(runs, [*asked, f"--out={runs / 'shared.jsonl'}"]))
  assert found == [0, 0], (runs / "err.0").read_text()
  texts = [
    [(x["id"], x["prompt"], x["tokens"]) for x in map(json.loads, path.read_text().splitlines())]
    for path in (runs / "alone.jsonl", runs / "shared.jsonl")
  ]
  assert texts[0] == texts[1] and len(texts[0]) == 3
  assert not list(runs.glob("shared.jsonl.*"))


def saved(run):
  """The newest step; 0: none yet."""
  names = (path.name for path in (run / checkpoint.STEPS).glob("*"))
  return max((int(name) for name in names if name.isdigit()), default=0)


def started_beyond(folder, run, step, patience=60):
  """Two processes that train, once they have saved a later step than this."""
  started = start(folder, trained(run, steps=100000, **{"sample.every": 0}), patience)
  for _ in range(600):
    if saved(run) > step:
      return started
    time.sleep(0.1)
  raise AssertionError((folder / "err.0").read_text())


def test_a_run_that_loses_a_process_goes_on(tmp_path):
  """Asked to go, as by a notice of preemption: all save the same step. Killed: the other ends."""
  run, errors = tmp_path / "run", tmp_path / "err.0"
  started = started_beyond(tmp_path, run, 0)
  os.kill(started[1].pid, signal.SIGTERM)
  assert ended(started) == [143, 143], errors.read_text()
  latest = saved(run)
  assert f"stopped and saved at step {latest}; the same" in (tmp_path / "out.0").read_text()

  (tmp_path / "out.0").unlink()
  errors.unlink()
  started = started_beyond(tmp_path, run, latest, PATIENCE)
  assert f"resumed at step {latest}" in (tmp_path / "out.0").read_text()
  os.kill(started[1].pid, signal.SIGKILL)
  assert ended(started) == [1, -signal.SIGKILL]
  (line,) = errors.read_text().splitlines()
  assert line.startswith(f"train: process 1 is gone: no sign of it for {PATIENCE} s; the same")
  latest = saved(run)
  more = trained(run, steps=latest + 1, **{"sample.every": 0, "eval.every": 0})
  done = mains.run(tmp_path, *more)
  assert done.returncode == 0 and f"resumed at step {latest}" in done.stdout, done.stderr
