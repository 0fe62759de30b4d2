"""Rows whose positions are split over devices: losses and gradients are those of one device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, parallel
from dlm.train import Step
from dlm.types import Batch
from tests.dlm.build import directories

CONFIG = {
  "seed": 0,
  "steps": 2,
  "batch": 8,
  "model": {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 32},
  "data": {"sources": (("lists", 1.0),), "length": 64, "mode": "pad"},
  "optimizer": {"lr": 1e-3},
  "checkpoint": {"keep_best": 0},
}
BLOCKS = {"name": "bd3lm", "block": 8}
MOE = {"experts": 4, "per_token": 2, "mlp": 8}
FOUR, THREE_WAYS = {"data": 2, "sequence": 4}, {"fsdp": 2, "tensor": 2, "sequence": 2}


def on(config, sizes):
  """The compiled loss and gradient of a batch on that mesh, and what it gives."""
  count = math.prod(sizes.values())
  mesh = parallel.make_mesh(**{"data": 1} | sizes, devices=jax.devices()[:count])
  training = build.everything(config)
  object.__setattr__(training, "mesh", mesh)
  step = Step(training)
  params = step.init().params
  rows = [jax.device_put(x, parallel.batch_sharding(mesh)) for x in training.rows[0]]

  def gradient(params, noisy):
    def total(params):
      loss, _ = training.objective.loss(training.model, params, noisy)
      return loss.total, loss

    return jax.grad(total, has_aux=True)(params)

  @jax.jit
  def run(params, batch):
    return step.summed(gradient)(params, step.corrupt("train", batch, jnp.int32(0), params))

  program = run.lower(params, Batch(*rows)).compile()
  return program, jax.device_get(program(params, Batch(*rows)))


def temporary(program) -> int:
  return program.memory_analysis().temp_size_in_bytes


def assert_close(got, want):
  """Up to rounding of the largest entry of each gradient."""

  def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * max(np.abs(want).max(), 1e-3))

  jax.tree.map(close, got, want)


@pytest.mark.parametrize(
  "objective,sizes", [({"name": "mdlm"}, FOUR), (BLOCKS, THREE_WAYS)], ids=["rows", "noisy_clean"]
)
def test_losses_and_gradients_are_those_of_one_device(objective, sizes):
  config = CONFIG | {"objective": objective}
  (whole, want), (split, got) = on(config, {"data": 1}), on(config, sizes)
  assert_close(got, want)
  assert temporary(split) < 1.6 * temporary(whole) / math.prod(sizes.values())


def test_so_are_those_of_an_imported_model_that_predicts_next_tokens(tmp_path):
  """Grouped heads with biases; each position is asked for the token after it."""
  source = directories.write(tmp_path / "hf", kv_heads=2, spare=9)
  config = CONFIG | {"objective": {"name": "mdlm", "shift": 1}, "init_from": str(source)}
  del config["model"]
  (_, want), (_, got) = on(config, {"data": 1}), on(config, {"fsdp": 2, "sequence": 2})
  assert_close(got, want)


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"data": CONFIG["data"] | {"length": 60}}, "data.length=60 must divide by mesh.sequence=8"),
    ({"model": CONFIG["model"] | {"moe": MOE}}, "model.moe=MoeConfig.*mesh.sequence=8: experts"),
    ({"sample": {"every": 1}}, "sample.every=1 does not go with mesh.sequence=8: sampling takes"),
  ],
)
def test_what_takes_whole_rows_is_refused(changes, message):
  config = CONFIG | {"objective": {"name": "mdlm"}, "mesh": {"data": 1, "sequence": 8}}
  with pytest.raises(ValueError, match=message):
    build.everything(config | changes)


def test_sampling_on_split_rows_is_refused():
  with pytest.raises(ValueError, match=r"mesh\.sequence=2 must be 1: sampling takes whole rows"):
    build.SamplingConfig.of({"mesh": {"sequence": 2}})
