"""Published weights on a mesh: the same parameters, on the shards where training wants them."""

import functools

import jax
import numpy as np
import pytest

from dlm import build
from dlm.train import Step
from tests.dlm.build import directories

CONFIG = {
  "seed": 0,
  "steps": 2,
  "batch": 8,
  "data": {"sources": (("lists", 1.0),), "length": 32, "mode": "pad", "tokenizer": ""},
  "objective": {"name": "mdlm"},
  "optimizer": {"lr": 1e-3},
  "checkpoint": {"keep_best": 0},
}


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_run_starts_on_its_shards(tmp_path, mesh):
  """From the directory, and from a folder that was imported on another mesh."""
  source = directories.write(tmp_path / "hf", kv_heads=2, spare=9)
  where = build.pretrained(source)
  build.write_checkpoint(tmp_path / "ours", where.adapted())
  want, _ = where.adapted().params(dtype="float32")
  for folder in (source, tmp_path / "ours"):
    step = Step(build.everything(CONFIG | {"init_from": str(folder), "mesh": mesh}))
    found = step.init().params
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, want)
    assert jax.tree.map(lambda x: x.sharding, found) == step.shardings().params
