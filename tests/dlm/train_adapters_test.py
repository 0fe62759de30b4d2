"""Runs that train `model.lora`: what changes, what is saved, what is computed."""

import collections
import re
import shutil

import jax
import numpy as np
import pytest

from dlm import build, checkpoint, train
from dlm.files import write_json
from dlm.models import lora
from dlm.optimizer import trained
from dlm.train import Step
from dlm.types import Batch
from dlm.workdir import CheckpointError, read_json
from tests.dlm.build import directories

GATED = {"rank": 2, "alpha": 4.0, "gated": True}


def table(source, **changes):
  return {
    "steps": 4,
    "batch": 4,
    "log_every": 2,
    "init_from": str(source),
    "model": {"lora": GATED},
    "objective": {"name": "i_dlm", "block": 2},
    "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
    "optimizer": {"lr": 1e-2},
    "eval": {"every": 2, "batches": 1},
    "checkpoint": {"every": 2},
    **changes,
  }


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return directories.write(tmp_path_factory.mktemp("sources") / "base")


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  return workdir, train.train(build.everything(table(source)), workdir)


def test_adapters_alone_change_and_have_moments(source, run):
  training = build.everything(table(source))
  first, state = Step(training).init(), run[1]
  same(lora.frozen(first.params), lora.frozen(state.params))
  before, after = lora.adapters(first.params), lora.adapters(state.params)
  assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
  own = trained(training.run.optimizer, state.params)
  assert jax.tree.leaves(own) == jax.tree.leaves(after)
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert len(moments) == 2 * len(jax.tree.leaves(after))


def test_steps_hold_adapters_alone_and_the_folder_knows_its_base(run):
  workdir, state = run
  kept, step = checkpoint.restore_params(workdir, "latest")
  assert step == 4
  same(kept, lora.adapters(state.params))
  params, _ = build.pretrained(workdir, "latest").params()
  same(params, state.params)
  assert read_json(workdir, "data.json")["base"].keys() == {"parameters"}


def test_resumed_run_equals_the_unbroken_one_bit_for_bit(source, run, tmp_path):
  train.train(build.everything(table(source, steps=2)), tmp_path / "run")
  state = train.train(build.everything(table(source)), tmp_path / "run")
  same(state, run[1])


def test_base_that_changed_is_refused(source, run, tmp_path):
  workdir, moved = tmp_path / "run", tmp_path / "base"
  shutil.copytree(run[0], workdir)
  config = read_json(workdir, "config.json")
  write_json(workdir / "config.json", config | {"init_from": str(moved)})
  with pytest.raises(ValueError, match=re.escape(str(moved))):
    build.pretrained(workdir).params()
  directories.write(moved, kv_heads=2)
  with pytest.raises(ValueError, match=r"init_from .* holds another model than the config"):
    build.pretrained(workdir).params()
  shutil.rmtree(moved)
  shutil.copytree(source, moved)
  weights = moved / "model.safetensors"
  content = bytearray(weights.read_bytes())
  content[-1] ^= 128  # a sign
  weights.write_bytes(content)
  with pytest.raises(ValueError, match="holds adapters of other parameters than"):
    build.pretrained(workdir).params()
  with pytest.raises(CheckpointError, match=r"base\.parameters"):
    train.train(build.everything(table(moved)), workdir)


def test_another_run_goes_on_from_the_adapters(run, tmp_path):
  workdir, _ = run
  config = table(workdir, steps=1)
  del config["model"]
  training = build.everything(config)
  assert training.model == build.pretrained(workdir).model
  same(Step(training).init().params, build.pretrained(workdir).params()[0])
  again = train.train(training, tmp_path / "again")
  same(build.pretrained(tmp_path / "again", "latest").params()[0], again.params)
  with pytest.raises(ValueError, match=r"lora\.rank: 2 -> 3"):
    build.everything(table(workdir, model={"lora": GATED | {"rank": 3}}))


def test_update_makes_nothing_of_the_size_of_what_is_frozen(source):
  """As compiled: no gradient of a frozen kernel or table, and a state of hardly more bytes."""
  step = Step(build.everything(table(source, model={"lora": GATED | {"targets": "query"}})))
  state = step.abstract()
  batch = Batch(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in step.training.rows[0]))
  compiled = step.update.lower(state, batch).compile()
  made = collections.defaultdict(set)  # what is done, by the shape that comes of it
  for sizes, what in re.findall(r"= f32\[([\d,]+)\]\S* ([a-z-]+)\(", compiled.as_text()):
    made[tuple(map(int, sizes.split(",")))].add(what)
  frozen, own = lora.frozen(state.params), lora.adapters(state.params)
  passing = {"parameter", "get-tuple-element"}
  kernels = {leaf.shape for leaf in jax.tree.leaves(frozen) if leaf.size > 64}
  assert state.params["embed"].shape in kernels
  assert {shape: made[shape] - passing for shape in kernels if made[shape] - passing} == {}
  assert all(made[leaf.shape] - passing for leaf in jax.tree.leaves(own))
  given = compiled.memory_analysis().argument_size_in_bytes
  assert given < 1.2 * sum(leaf.size * 4 for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"init_from": ""}, "model.lora needs init_from"),
    ({"optimizer": {"lr": 1e-2, "ema": 0.9}}, "optimizer.ema=0.9 does not go with model.lora"),
    ({"optimizer": {"lr": 1e-2, "trainable": "router"}}, "optimizer.trainable='router' does not"),
    ({"model": {"lora": GATED | {"mask_id": 3}}}, "model.lora.mask_id=3 is not the tokenizer's"),
  ],
)
def test_what_does_not_go_with_adapters_is_refused(source, changes, message):
  config = table(source, **changes)
  if not config["init_from"]:
    sizes = dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=24)
    config["model"] = {**sizes, "lora": GATED}
  with pytest.raises(ValueError, match=message):
    build.everything(config)
