"""Checkpoint folders as earlier versions wrote them, word for word, stay readable."""

import json

import jax
import pytest

from dlm import build, checkpoint, masks, train, workdir
from dlm.build import RunConfig
from dlm.data import ByteTokenizer
from dlm.objectives import ExactCount, Mdlm
from tests.dlm.build import directories

# Of a run, when every config file spelled out all of its fields.
CONFIG = """{
  "batch": 8,
  "checkpoint": {"every": 3, "keep_best": 1, "keep_last": 2},
  "data": {"length": 32, "mode": "pack", "sources": [["stdlib", 1.0]], "tokenizer": "byte"},
  "eval": {"batches": 1, "every": 3},
  "init_from": "",
  "log_every": 10,
  "mesh": {"data": -1, "expert": 1, "fsdp": 1, "tensor": 1},
  "microbatches": 1,
  "model": {
    "dtype": "float32", "head_dim": 16, "heads": 2, "kv_heads": 2, "layers": 2, "mlp": 64,
    "width": 32
  },
  "objective": {"name": "mdlm", "schedule": "log_linear", "times": "stratified"},
  "optimizer": {
    "clip": 1.0, "ema": 0.99, "lr": 0.01, "name": "adamw", "schedule": "constant", "warmup": 2,
    "weight_decay": 0.0
  },
  "parallel": "shard_map",
  "sample": {"config": "configs/sample/default.py", "every": 0, "prompts": [""]},
  "seed": 0,
  "steps": 6
}"""
FACTS = """{
  "mask_id": 259, "eos_ids": [258], "pad_id": 256, "shift": 0, "attention": "full", "block": null,
  "vocab": 260, "length": 32
}"""

# Of imported weights.
IMPORTED = """{
  "model": {
    "vocab": 276, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 24,
    "moe": null, "rope_base": 1000000.0, "rotary_dim": 0, "norm_eps": 1e-06, "qk_norm": true,
    "qkv_bias": false, "tied": false, "time_conditioned": false, "dit": 0, "soft_cap": null,
    "dtype": "float32", "implementation": "tpu", "remat": false
  },
  "objective": {"name": "exact_count", "block": 4},
  "huggingface": {"family": "sdar", "config": {"model_type": "sdar", "block_size": 4}}
}"""


def _today(*fields):
  """The same run by today's file, with other fields if they are given."""
  short = ("eval.every=3", "eval.batches=1", "checkpoint.every=3", "optimizer.warmup=2", "steps=6")
  return build.everything(RunConfig.read("configs/train/tiny.py", (*short, *fields)))


@pytest.fixture
def folder(tmp_path):
  """Of the run, its parameters random."""
  training = _today()
  (tmp_path / "run").mkdir()
  training.tokenizer.save(tmp_path / "run")
  (tmp_path / "run" / "config.json").write_text(CONFIG)
  (tmp_path / "run" / "facts.json").write_text(FACTS)
  checkpoint.save_params(tmp_path / "run", 6, jax.jit(training.model.init)(jax.random.key(0)), {})
  return tmp_path / "run"


def test_a_run_is_described_and_read(folder):
  found = build.pretrained(folder)
  assert found.facts.attention == masks.Full() and found.facts.eos_ids == (258,)
  assert (found.model.config.width, found.model.config.vocab) == (32, 260)
  assert found.tokenizer.fingerprint == ByteTokenizer().fingerprint
  assert build.estimator(found.objective, found.tokenizer) == ExactCount(259)
  assert build.estimator(found.objective, found.tokenizer, "training") == Mdlm(259)
  assert build.recorded(json.loads(CONFIG)) == build.plain(_today().run)
  params, step = found.params()
  assert step == 6 and params["embed"].shape == (260, 32)


def test_a_run_goes_on_by_todays_config_and_not_by_another(folder):
  with pytest.raises(workdir.CheckpointError, match=r"\(optimizer.lr: 0.01 -> 0.5\)"):
    train.train(_today("optimizer.lr=0.5"), folder)
  assert (folder / "config.json").read_text() == CONFIG
  today = _today()
  run = build.plain(today.run)
  with workdir.claimed(folder, run, today.facts, today.tokenizer, {}, as_now=build.recorded):
    assert build.pretrained(folder).run() == today.run


def test_imported_weights_are_described(tmp_path):
  facts = {"attention": "block_causal", "block": 4, "shift": 0}
  source = directories.write(tmp_path / "hf", "sdar", mask="|<MASK>|", **facts)
  made = build.pretrained(source)
  build.write_checkpoint(tmp_path / "run", made)
  (tmp_path / "run" / "config.json").write_text(IMPORTED)
  found = build.pretrained(tmp_path / "run")
  assert found.model == made.model, "the kernels of the machine it came from are not asked for"
  assert build.estimator(found.objective, found.tokenizer) == ExactCount(found.facts.mask_id, 4)
  assert found.run() is None
