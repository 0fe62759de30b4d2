"""One device and eight, by both drivers, train the same model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, checkpoint, parallel, train
from dlm.models.moe.training import load
from dlm.train import Step
from dlm.types import Batch

CONFIG = {
  "seed": 0,
  "steps": 3,
  "batch": 16,
  "log_every": 1,
  "model": {"width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp": 64},
  "objective": {"name": "mdlm"},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2, "ema": 0.9},
  "eval": {"every": 3, "batches": 2},
}


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [r.get("loss", r.get("eval/loss")) for r in map(json.loads, lines)]


def on_one_device(config, workdir):
  run = build.everything(config)
  one = parallel.make_mesh(1, devices=jax.devices()[:1])
  object.__setattr__(run, "mesh", one)
  train.train(run, workdir)
  return workdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The run on one of the devices."""
  return on_one_device(CONFIG, tmp_path_factory.mktemp("runs") / "alone")


@pytest.mark.parametrize(
  "changes",
  [
    {"parallel": "shard_map"},
    {"parallel": "pmap"},
    {"parallel": "shard_map", "microbatches": 2},
    {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "microbatches": 2},
  ],
  ids=["shard_map", "pmap", "microbatches", "data_fsdp_tensor"],
)
def test_eight_devices_give_the_losses_of_one(alone, tmp_path, changes):
  train.train(build.everything(CONFIG | changes), tmp_path / "run")
  np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-5)


def test_a_learned_schedule_is_that_of_one_device(tmp_path):
  """GenMD4: its powers lie on every device, and the gradient of each row is its own."""
  config = CONFIG | {"objective": {"name": "genmd4"}}
  found = on_one_device(config, tmp_path / "alone")
  split = config | {"mesh": {"data": 2, "fsdp": 4}}
  train.train(build.everything(split), tmp_path / "run")
  np.testing.assert_allclose(losses(tmp_path / "run"), losses(found), rtol=1e-5)
  power_V = [
    checkpoint.restore_params(folder, "latest", objective=True)[0]["objective"]["power_V"]
    for folder in (tmp_path / "run", found)
  ]
  np.testing.assert_allclose(*power_V, rtol=1e-4)


@pytest.mark.parametrize("driver", ["shard_map", "pmap"])
def test_load_of_experts_is_summed_over_devices(driver):
  moe = {"experts": 4, "per_token": 2, "mlp": 8, "bias": True, "bias_rate": 0.1}
  config = CONFIG | {"model": CONFIG["model"] | {"moe": moe}, "parallel": driver}
  step = Step(build.everything(config))
  batch = Batch(*map(jnp.asarray, step.training.rows[0]))
  state = step.init()

  @jax.jit
  def load_of(params):
    noisy = step.corrupt("train", batch, jnp.int32(0), params)
    return load(step.training.objective.loss(step.training.model, params, noisy)[1])

  whole = np.asarray(load_of(state.params), float)
  state, *_ = step.update(state, batch)
  want = 0.1 * np.sign(whole.mean(1, keepdims=True) - whole)
  assert (want != 0).any()
  np.testing.assert_allclose(state.params["layers"]["moe"]["router"]["bias"], want, rtol=1e-6)


def test_run_goes_on_and_is_sampled_on_another_mesh(alone, tmp_path):
  split = {"mesh": {"data": 2, "fsdp": 4, "tensor": 1}}
  train.train(build.everything(CONFIG | {"steps": 2}), tmp_path / "run")
  run = build.everything(CONFIG | split)
  state = train.train(run, tmp_path / "run")
  np.testing.assert_allclose(losses(tmp_path / "run")[-1], losses(alone)[-1], rtol=1e-5)
  params, step = checkpoint.restore_params(
    tmp_path / "run", "latest", shardings=Step(run).shardings().params
  )
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, params, state.ema)
  here, there = params["embed"], state.params["embed"]
  assert here.sharding.is_equivalent_to(there.sharding, here.ndim)
  assert here.addressable_shards[0].data.shape == (260, 8)  # fsdp=4 splits the width


def test_pmap_beside_other_axes_is_refused():
  changes = {"parallel": "pmap", "mesh": {"data": 2, "fsdp": 4}}
  with pytest.raises(ValueError, match="parallel='pmap' splits the batch only"):
    build.everything(CONFIG | changes)
