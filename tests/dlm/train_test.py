import dataclasses
import json
import math
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, train
from dlm.files import locked_folder
from dlm.train import Step
from dlm.types import Batch
from dlm.workdir import CheckpointError, claimed, read_json

CONFIG = {
  "seed": 0,
  "steps": 6,
  "batch": 8,
  "log_every": 2,
  "model": {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 48},
  "objective": {"name": "bd3lm", "block": 8},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2, "warmup": 2, "ema": 0.9},
  "eval": {"every": 4, "batches": 2},
  "checkpoint": {"every": 2, "keep_last": 2, "keep_best": 1},
}


def training(**changes):
  """The config with dotted fields changed: `{"optimizer.lr": 1.0}`."""
  config = json.loads(json.dumps(CONFIG))
  for field, value in changes.items():
    *tables, name = field.split(".")
    table = config
    for each in tables:
      table = table[each]
    table[name] = value
  return build.everything(config)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def records(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def learned(workdir):
  """What is recorded of updates, but speeds."""
  speeds, lines = {"tokens/s", "flop/s", "seconds/step"}, records(workdir)
  return [{k: v for k, v in line.items() if k not in speeds} for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "unbroken"
  return workdir, train.train(training(), workdir)


def test_resumed_run_equals_the_unbroken_one_bit_for_bit(unbroken, tmp_path):
  train.train(training(steps=3), tmp_path / "run")
  state = train.train(training(), tmp_path / "run")
  same(state, unbroken[1])
  logged = [{k: r[k] for k in ("step", "lr") if k in r} for r in records(tmp_path / "run")]
  assert [r["step"] for r in logged if "lr" in r] == [2, 3, 4, 6]


class StopsAt:
  """Rows that send the process a signal when step `step` asks for them."""

  def __init__(self, rows, step, number):
    self.rows, self.step, self.number = rows, step, number

  def __getitem__(self, step):
    if step == self.step:
      os.kill(os.getpid(), self.number)
    return self.rows[step]

  def __getattr__(self, name):
    return getattr(self.rows, name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_after_the_update_at_hand(unbroken, tmp_path, capsys, number):
  before = signal.getsignal(number)
  run = training(**{"checkpoint.every": 0})
  object.__setattr__(run, "rows", StopsAt(run.rows, 2, number))
  state = train.train(run, tmp_path / "run")
  assert int(state.step) == 3
  assert "stopped and saved at step 3" in capsys.readouterr().out
  assert signal.getsignal(number) == before
  same(train.train(training(), tmp_path / "run"), unbroken[1])
  assert learned(tmp_path / "run") == learned(unbroken[0])  # of updates 3 and 4 together, too


def test_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
  with pytest.raises(FloatingPointError, match=r"(loss|gradient) is \S+ at step \d"):
    train.train(training(**{"optimizer.lr": 1e30, "optimizer.clip": None}), tmp_path / "run")
  steps = {int(path.name) for path in (tmp_path / "run" / checkpoint.STEPS).iterdir()}
  assert steps <= {2}


def test_state_that_became_nan_in_the_update_at_hand_is_not_saved(tmp_path):
  """Its loss and gradient are finite: only the new parameters tell."""
  run = training(**{"checkpoint.every": 1, "eval.every": 0, "checkpoint.keep_best": 0})
  optimizer = dataclasses.replace(run.run.optimizer, lr=math.nan, warmup=0)
  object.__setattr__(run.run, "optimizer", optimizer)
  with pytest.raises(FloatingPointError, match="params/embed is not finite at step 1; it was not"):
    train.train(run, tmp_path / "run")
  assert list((tmp_path / "run" / checkpoint.STEPS).iterdir()) == []


def test_run_whose_data_changed_is_refused_with_the_difference(tmp_path):
  text = tmp_path / "text.jsonl"
  text.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(200)))
  data = {"data.sources": ((f"jsonl:{text}", 1.0),)}
  run = training(**data)
  with claimed(
    tmp_path / "run", build.plain(run.run), run.facts, run.tokenizer,
    {"train": run.rows.fingerprint(), "test": run.eval_rows.fingerprint()},
  ):  # fmt: skip
    pass
  text.write_text(text.read_text().replace("line 7", "LINE 7"))
  message = f"source 0, jsonl: {text}: '4090 bytes, .*' -> '4090 bytes, .*'"
  with pytest.raises(CheckpointError, match=message) as told:
    train.train(training(**data), tmp_path / "run")
  assert "train.source 0" in str(told.value) and "test.source 0" in str(told.value)


def test_second_training_in_one_folder_is_refused(unbroken):
  workdir, _ = unbroken
  before = (workdir / "metrics.jsonl").read_bytes()
  with locked_folder(workdir), pytest.raises(ValueError, match="is being written by another proc"):
    train.train(training(steps=7), workdir)
  assert (workdir / "metrics.jsonl").read_bytes() == before
  assert read_json(workdir, "config.json")["steps"] == 6


def test_records_hold_loss_speed_and_evaluation(unbroken):
  lines = records(unbroken[0])
  assert [r["step"] for r in lines if "loss" in r] == [2, 4, 6]
  assert {"loss", "grad_norm", "lr", "tokens/s", "flop/s"} <= lines[0].keys()
  assert [r["step"] for r in lines if "eval/loss" in r] == [2, 4, 6]  # what is saved is evaluated
  assert list(unbroken[0].glob("events.out.tfevents.*"))


def test_checkpoint_folder_is_self_contained(unbroken):
  workdir, state = unbroken
  assert read_json(workdir, "facts.json") == {
    "mask_id": 259,
    "eos_ids": [258],
    "pad_id": 256,
    "shift": 0,
    "attention": "block_causal",
    "block": 8,
    "insert_id": None,
    "delete_id": None,
    "vocab": 260,
    "length": 32,
  }
  assert build.pretrained(workdir).model == training().model
  params, step = checkpoint.restore_params(workdir, "latest")
  assert step == 6
  same(params, state.ema)


def test_gradient_does_not_depend_on_how_the_batch_is_cut():
  """Gradient descent at rate 1: what changes the parameters is the gradient."""
  plain = {"optimizer": {"name": "sgd", "lr": 1.0, "clip": None, "schedule": "constant"}}
  found = {}
  for parts in (1, 2, 4):
    step = Step(training(microbatches=parts, **plain))
    batch = Batch(*map(jnp.asarray, step.training.rows[0]))
    found[parts] = step.update(step.init(), batch)[:2]
  nothing = batch.replace(noisable_BxL=jnp.zeros_like(batch.noisable_BxL))
  state, loss, _ = step.update(step.init(), nothing)
  assert loss.count == 0, "a batch of prompts alone"
  same(state.params, step.init().params)
  for parts in (2, 4):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      found[1][0].params,
      found[parts][0].params,
    )
    np.testing.assert_allclose(found[1][1].total, found[parts][1].total, rtol=1e-6)


def test_search_goes_on_with_the_window_whose_losses_vary_least(tmp_path, capsys):
  """BD3-LM's, at every evaluation; a resumed run goes on with the window that was found."""
  search = {"objective.search": True, "eval.every": 1, "eval.batches": 1, "optimizer.warmup": 0}
  whole = train.train(training(steps=2, **search), tmp_path / "whole")
  said = capsys.readouterr().out
  windows = re.findall(r"step (\d)  goes on with {'window': \((\S+), (\S+)\)}", said)
  assert [step for step, *_ in windows] == ["1", "2"]
  step = Step(training(**search))
  batch = Batch(*map(jnp.asarray, step.training.eval_rows[0]))
  with checkpoint.Checkpoints(tmp_path / "whole", checkpoint.Retention()) as checkpoints:
    _, meta = checkpoints.restore(step.abstract())
  spreads = [
    float(step.spread(whole.best_params(), batch.replace(extra=extra), jnp.int32(0)))
    for extra in step.training.objective.candidates
  ]
  least = step.training.objective.candidates[int(np.argmin(spreads))]
  assert meta["data"]["extra"]["window"] == pytest.approx(least["window"], rel=1e-6)
  assert float(windows[-1][1]) == pytest.approx(least["window"][0])
  train.train(training(steps=1, **search), tmp_path / "run")
  same(train.train(training(steps=2, **search), tmp_path / "run"), whole)


def test_learned_schedule_is_trained_and_kept_but_no_part_of_the_model(tmp_path):
  """GenMD4's: in parameters, moments and average; resumed bit for bit; no sampler is given it."""
  learned = {"objective": {"name": "genmd4"}, "microbatches": 2, "optimizer.warmup": 1}
  run = training(steps=3, **learned)
  state = train.train(run, tmp_path / "run")
  begun, power_V = run.objective.init(0)["power_V"], state.params["objective"]["power_V"]
  assert (np.asarray(begun != power_V)[run.rows[0].tokens_BxL]).any()
  made = build.pretrained(tmp_path / "run", "latest")
  same(made.params(objective=True)[0], state.ema)
  model = {name: each for name, each in state.ema.items() if name != "objective"}
  same(made.params()[0], model)
  train.train(training(steps=2, **learned), tmp_path / "again")
  same(train.train(run, tmp_path / "again"), state)
  powers = [r["power_max"] for r in records(tmp_path / "run") if "power_max" in r]
  assert powers and all(0.9 < each < 1.1 for each in powers)


def test_samples_are_asked_for_and_recorded(tmp_path):
  def samples(params, step):
    return [f"sample of step {step}"]

  train.train(
    training(steps=2, **{"sample": {"every": 1}, "optimizer.warmup": 0}), tmp_path / "run", samples
  )
  texts = [r["samples"] for r in records(tmp_path / "run") if "samples" in r]
  assert texts == [["sample of step 1"], ["sample of step 2"]]


def test_flops_count_both_halves_of_noisy_and_clean():
  block = Step(training()).flops()
  whole = Step(training(**{"objective.block": 32})).flops()
  config = training().model.config
  assert whole == 3 * 8 * 32 * config.flops_per_token(32)
  unasked = 2 * 8 * 32 * config.vocab * config.width  # clean tokens do not meet the unembedding
  assert block == 3 * (8 * 64 * config.flops_per_token(64) - unasked)
  both = Step(training(**{"objective": {"name": "fast_dllm_v2", "block": 4}})).flops()
  assert both == 2 * block  # complementary views
