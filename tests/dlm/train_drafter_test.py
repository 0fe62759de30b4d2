"""A DFlash drafter from its first update to the text that it drafts, and through z-lab's layout."""

import copy

import jax
import numpy as np
import pytest

from dlm import build, checkpoint, train, workdir
from dlm.build.export import write_huggingface
from dlm.generate import Request, generator
from dlm.metrics import records
from dlm.models.config import DrafterConfig
from tests.dlm.weights.small import same_bits

LENGTH, BLOCK = 32, 4
CONFIG = {
  "steps": 6,
  "batch": 4,
  "log_every": 1,
  "data": {"sources": (("lists", 1.0, (("mode", "pad"), ("pad", "none"))),), "length": LENGTH},
  "objective": {"name": "dflash", "block": BLOCK, "anchors": 6, "gamma": 4.0},
  "model": {"layers": 1},
  "optimizer": {"lr": 3e-2},
  "eval": {"every": 6, "batches": 1},
}
TARGET = dict(width=32, layers=3, heads=2, kv_heads=1, head_dim=16, mlp=48)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
  """An autoregressive checkpoint that was never trained."""
  folder = tmp_path_factory.mktemp("runs") / "ar"
  ar = {name: CONFIG[name] for name in ("steps", "batch", "data", "optimizer", "eval")}
  run = build.everything(ar | {"objective": {"name": "ar"}, "model": TARGET})
  folder.mkdir()
  workdir.fill(folder, run.config(), run.facts, run.tokenizer)
  params = jax.jit(run.model.init)(jax.random.key(0))
  checkpoint.save_params(folder, 0, params, {"from": "nowhere"})
  return folder


def training(target, **tables):
  return build.everything(copy.deepcopy(CONFIG) | {"teacher": str(target)} | tables)


def test_it_learns_and_is_exported_and_drafts(target, tmp_path):
  run = training(target)
  assert run.model.config.drafter == DrafterConfig((1,), 3, run.tokenizer.mask_id)
  assert (run.model.config.width, run.model.config.mlp, run.model.taps) == (32, 48, (1,))
  train.train(run, tmp_path / "run")
  told = [each for each in records(tmp_path / "run") if "accepted" in each]
  assert told[-1]["loss"] < 0.9 * told[0]["loss"]
  assert all(each["accepted"] >= each["blocks"] > 0 for each in told)

  trained, own = build.pretrained(target), build.pretrained(tmp_path / "run")
  write_huggingface(tmp_path / "zlab", own, "dflash")
  back = build.pretrained(tmp_path / "zlab", words=trained.tokenizer)
  assert (back.model, back.facts.block, back.facts.mask_id) == (own.model, BLOCK, own.facts.mask_id)
  params, _ = back.params()
  same_bits(params, jax.tree.map(np.asarray, own.params()[0]))

  settings = {"cache": {"name": "rolling"}, "max_new_tokens": 12, "slots": LENGTH, "batch": 1}
  drafting = settings | {"policy": {"name": "dflash", "length": 3}}
  plain = settings | {"policy": {"name": "introspective", "stride": 1}}
  request = [Request.from_text(0, "one two", trained.tokenizer, slots=LENGTH, max_new_tokens=12)]
  weights, _ = trained.params()
  sample, _ = generator(drafting, trained, drafter=back)
  alone, _ = generator(plain, trained)
  (got,) = sample((weights, params), request, seed=0)
  (want,) = alone(weights, request, seed=0)
  assert got.tokens == want.tokens and got.forwards["draft"] == got.forwards["window"]


@pytest.mark.parametrize(
  ("tables", "message"),
  [
    ({"teacher": ""}, "objective.name='dflash' needs teacher: what"),
    ({"model": {"layers": 1, "width": 64}}, "the drafter's model.width=64 must be its target's 32"),
    ({"model": {"layers": 1, "tied": False}}, "a drafter's layers are Qwen3's, without tied=False"),
    ({"objective": {"name": "mdlm"}, "teacher": ""}, "ModelConfig: .* is missing"),
    (
      {"model": {"layers": 1, "drafter": {"taps": (1,), "target_layers": 3, "window": 3}}},
      "model.drafter.window=3 must be at least objective.block=4",
    ),
    (
      {"objective": {"name": "dflash", "block": 33, "anchors": 2}},
      "block=33 exceeds data.length=32",
    ),
  ],
)
def test_mistakes_are_named_before_work_starts(target, tables, message):
  with pytest.raises(ValueError, match=message):
    training(target, **tables)
