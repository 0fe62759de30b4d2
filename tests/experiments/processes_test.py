"""Real processes, which meet by jax's coordination service and compute together by gloo."""

import json
import os
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from dlm import build, checkpoint
from tests.dlm.build import directories
from tests.experiments import mains

LISTS = '(("lists",1.0,(("tasks",("copy",)),("form","grid"),("items",(2,2)))),)'
FIELDS = {
  "batch": 4,
  "log_every": 1,
  "data.length": 16,
  "model.layers": 1,
  "optimizer.ema": "None",
  "optimizer.warmup": 0,
  "eval.every": 0,
  "checkpoint.every": 2,
  "checkpoint.keep_best": 0,
}
REWARDED = {
  "steps": 2,
  "batch": 8,
  "log_every": 1,
  "data.sources": LISTS,
  "data.length": 64,
  "rollout.max_new_tokens": 8,
  "rewards.group": 2,
  "rewards.updates": 1,
  "optimizer.warmup": 0,
  "optimizer.eps": 1e-3,  # or rounding would decide where a gradient is next to nothing
  "eval.every": 2,
  "eval.batches": 1,
  "checkpoint.every": 2,
  "sample.every": 2,
  "sample.prompts": '("the cat sat",)',  # or all slots would be equal, and rounding would decide
}
PATIENCE = 8  # where one is killed: a machine with busy cores is silent for a few seconds
QUICK = {  # to compile, and what one has compiled others read
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def letters(written):
  """A reward; what it is asked for is told, as it was when it was asked."""
  with open(os.environ["SCORED"], "a") as scored:
    scored.write(json.dumps(written.text) + "\n")
  return len({*written.text}) / 8


def trained(run, config="tiny.py", fields=FIELDS, **changed):
  said = (f"--config.{name}={value}" for name, value in (fields | changed).items())
  return ["experiments/train.py", f"--config=configs/train/{config}", f"--workdir={run}", *said]


def start(folder, jobs, processes=2, patience=60, **environment):
  """The mains, one after the other, in each process; what they print is in out.P and err.P."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  where = ["--distributed", f"--coordinator=localhost:{port}", f"--processes={processes}"]
  started = []
  for process in range(processes):
    own = [*where, f"--process={process}", f"--patience={patience}"] if processes > 1 else []
    given = [[*map(str, argv), *own] for argv in jobs]
    streams = folder / f"out.{process}", folder / f"err.{process}"
    started.append(
      mains.PROCESSES.Process(
        target=mains.series, args=(given, *streams), kwargs=QUICK | environment
      )
    )
    started[-1].start()
  return started


def ended(started):
  for each in started:
    each.join(300)
  return [each.exitcode for each in started]


def records(run, *names):
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return [(line["step"], name, line[name]) for line in lines for name in names if name in line]


def jobs(folder, hf, base):
  """Every main that several processes may run; in the last one the first process cannot write."""
  from_base = f"--checkpoint={base}"
  fields = {"max_new_tokens": 8, "slots": 256, "stop": "never"}  # all by one program
  short = ["--config=configs/sample/default.py"]
  short += [f"--config.{name}={value}" for name, value in fields.items()]
  sample = ["experiments/sample.py", from_base, *short]
  evaluate = ["experiments/evaluate.py", from_base]
  text = [f"--config.data.sources={LISTS}", "--config.data.mode=pad", "--config.data.length=32"]
  prepare = ["experiments/prepare_data.py", "--source=stdlib", '--option=include=("topics",)']
  asked = [*short, "--task=parallel_bench:copy", "--size=3"]
  prompts = (f"--prompt={text * 30}" for text in ("Our cats", "A longer", "One more"))
  weights = "experiments/import_weights.py"
  reward = '(("tests.experiments.processes_test:letters",1.0),)'
  rewarded = REWARDED | {"init_from": base, "rewards.of": reward}
  return [
    [*prepare, "--length=16", "--shards=3", f"--out={folder / 'rows'}"],
    trained(folder / "run", "rl.py:wd1", rewarded),
    [*sample, *prompts, f"--out={folder / 'three.jsonl'}"],
    [*sample, f"--prompt={'Our mats' * 30}", f"--out={folder / 'one.jsonl'}"],
    [*evaluate, "--config=configs/train/tiny.py", *text, "--batches=3"],
    [*evaluate, *asked, f"--out={folder / 'answers.json'}"],
    [weights, f"--source={hf}", f"--workdir={folder / 'ours'}"],
    [weights, f"--source={folder / 'ours'}", f"--export={folder / 'back'}"],
    [*evaluate, *asked, f"--out={folder / 'nowhere' / 'answers.json'}"],
  ]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A model as its authors would ship it, and as one process has imported it."""
  folder = tmp_path_factory.mktemp("base")
  hf = directories.write(folder / "hf", "dream", mask="<|mask|>", attention="full", length=64)
  build.write_checkpoint(folder / "ours", build.pretrained(hf))
  return hf, folder / "ours"


@pytest.fixture(scope="module")
def done(tmp_path_factory, base):
  """The same jobs by one process and by two: where, and how they ended."""
  folders = [tmp_path_factory.mktemp("jobs") / name for name in ("one", "two")]
  started = []
  for count, folder in enumerate(folders, 1):
    folder.mkdir()
    own = jobs(folder, *base)
    started.append(start(folder, own, count, SCORED=str(folder / "scored")))
  return folders, [ended(each) for each in started]


def json_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_error_of_one_process_ends_all(done):
  (_, two), codes = done
  errors = [(two / f"err.{process}").read_text() for process in range(2)]
  assert codes == [[2], [2, 1]] and not any("Traceback" in each for each in errors), errors
  mistake, told = (each.splitlines()[-1] for each in errors)
  place = two / "nowhere"
  says = f"{place / 'answers.json'} cannot be written: {place} is not a folder"
  assert mistake == f"evaluate: {says}"
  assert told.startswith(f"evaluate: process 0 ended: {says}")


def test_two_processes_learn_from_rewards_as_one_does(done):
  (one, two), _ = done
  names = ("loss", "grad_norm", "reward/tests.experiments.processes_test:letters", "eval/loss")
  alone, found = (records(each / "run", *names) for each in (one, two))
  assert [x[:2] for x in found] == [x[:2] for x in alone] and len(alone) == 7
  np.testing.assert_allclose([x[2] for x in found], [x[2] for x in alone], rtol=1e-4, atol=1e-6)
  assert all(value > 1e-4 for _, name, value in alone if name == "grad_norm")
  (alone,), (found,) = (records(each / "run", "samples") for each in (one, two))
  assert found == alone and alone[0] == 2


def test_each_row_is_scored_once(done):
  (one, two), _ = done
  alone, found = (sorted((each / "scored").read_text().splitlines()) for each in (one, two))
  assert found == alone and len(alone) == 3 * REWARDED["batch"]


def test_the_first_process_alone_writes(done):
  (one, two), _ = done
  names = [{path.name.split(".")[0] for path in (each / "run").iterdir()} for each in (one, two)]
  assert names[0] == names[1]
  whole = [{path.name for path in each.iterdir()} - {"out.1", "err.1"} for each in (one, two)]
  assert whole[0] == whole[1]
  assert "step 2/2" in (two / "out.0").read_text()
  assert "step" not in (two / "out.1").read_text()


def test_one_process_reads_what_two_have_saved(done):
  (one, _), (two, step) = (checkpoint.restore_params(x / "run", "latest") for x in done[0])
  assert step == 2
  for found, alone in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "count"), [("three", 3), ("one", 1)])
def test_prompts_are_shared_out_and_come_back_in_order(done, name, count):
  alone, found = (
    [(x["id"], x["prompt"], x["tokens"]) for x in json_lines(each / f"{name}.jsonl")]
    for each in done[0]
  )
  assert found == alone and len(alone) == count


def test_an_evaluation_tells_what_one_process_tells(done):
  told = []
  for folder in done[0]:
    lines = (folder / "out.0").read_text().splitlines()
    told.append([line for line in lines if line.startswith(("24 sequences", "nats", "copy"))])
    answers = json.loads((folder / "answers.json").read_text())
    told[-1] += [answers["tasks"], answers["answers"]]
  assert told[0] == told[1] and len(told[0]) == 5


def test_weights_go_in_and_out_bit_for_bit(done, base):
  for folder in done[0]:
    (stored,), (found,) = (
      [path.read_bytes() for path in each.glob("*.safetensors")]
      for each in (base[0], folder / "back")
    )
    assert found == stored


def saved(run):
  """The newest step; 0: none yet."""
  names = (path.name for path in (run / checkpoint.STEPS).glob("*"))
  return max((int(name) for name in names if name.isdigit()), default=0)


def signalled(folder, argv, run, victim, number, processes=2):
  """How processes end that train, one of which gets a signal once they have saved a step."""
  begun = saved(run)
  patience = PATIENCE if number == signal.SIGKILL else 60
  started = start(folder, [argv], processes, patience)
  for _ in range(3000):
    if saved(run) > begun:
      break
    time.sleep(0.1)
  os.kill(started[victim].pid, number)
  return ended(started), [(folder / f"err.{each}").read_text() for each in range(processes)]


def losses(run, first):
  """Of two steps."""
  found = dict((step, loss) for step, _, loss in records(run, "loss"))
  return [found[first], found[first + 1]]


def test_a_run_that_loses_a_process_goes_on(done, tmp_path):
  """Asked to go, as by a notice of preemption: all save the same step. Killed: the other ends.

  What four processes have saved goes on in two and in one, to the same losses. The rows are those
  that two have prepared.
  """
  run, out = tmp_path / "run", tmp_path / "out.0"
  rows = {"data.sources": f'(("arrayrecord:{done[0][1] / "rows"}",1.0),)'}
  train = trained(run, steps=100000, **rows)
  slices = [*train, "--config.mesh.dcn=2"]
  codes, errors = signalled(tmp_path, slices, run, 1, signal.SIGTERM, processes=4)
  assert codes == [143] * 4, errors
  first = begun = saved(run)
  assert f"stopped and saved at step {begun}; the same" in out.read_text()
  alone, copy, new = (tmp_path / name for name in ("alone", "alone/run", "alone/new"))
  shutil.copytree(run, copy)
  one = start(alone, [trained(copy, steps=first + 2, **rows), trained(new, steps=2, **rows)], 1)
  gone = f"process 1 is gone: no sign of it for {PATIENCE} s"
  for victim, why in ((1, gone), (0, "process 0 is gone")):
    for stream in (*tmp_path.glob("err.*"), out):
      stream.unlink()
    codes, errors = signalled(tmp_path, train, run, victim, signal.SIGKILL)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, errors
    assert f"resumed at step {begun}" in out.read_text()
    assert errors[1 - victim] == f"train: {why}; the same command goes on from what is saved\n"
    begun = saved(run)
  assert ended(one) == [0], (alone / "err.0").read_text()
  assert f"resumed at step {first}" in (alone / "out.0").read_text()
  np.testing.assert_allclose(losses(run, 1), losses(new, 1), rtol=1e-5)
  np.testing.assert_allclose(losses(run, first + 1), losses(copy, first + 1), rtol=1e-5)
