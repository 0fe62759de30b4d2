"""Rows that the model writes itself are those of one device, and so is what it learns from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, parallel, rollout
from dlm.train import Step
from dlm.types import Batch
from tests.dlm.build import directories

CONFIG = {
  "steps": 2,
  "batch": 8,
  "log_every": 1,
  "data": {
    "sources": (("lists", 1.0, (("mode", "pad"), ("pad", "none"))),), "length": 32,
    "tokenizer": "",
  },
  "objective": {"name": "opdlm", "block": 4},
  "rollout": {
    "policy": {"name": "fixed", "k": 1}, "temperature": 1.0, "stop": "stop_block",
    "max_new_tokens": 8,
  },
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}  # fmt: skip
SPLIT = {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  folder = directories.write(tmp_path_factory.mktemp("runs") / "hf", kv_heads=2, spare=9)
  return CONFIG | {"init_from": str(folder)}


def on_one_device(config):
  run = build.everything(config)
  one = parallel.make_mesh(1, devices=jax.devices()[:1])
  object.__setattr__(run, "mesh", one)
  return run


def written(run):
  """The rows of an update, and what is told of them."""
  params, batch = Step(run).init().params, Batch(*map(jnp.asarray, run.rows[0]))
  return jax.tree.map(np.asarray, rollout.of(run)(params, batch, jax.random.key(0)))


def learned(run, rows):
  """Loss and gradient's norm of an update on given rows."""
  step = Step(run)
  _, loss, numbers = step.update(step.init(), jax.tree.map(jnp.asarray, rows), step.teacher())
  return float(loss.total), float(numbers["grad_norm"])


@pytest.fixture(scope="module")
def alone(started):
  rows, numbers = written(on_one_device(started))
  assert len(np.unique(rows.tokens_BxL[rows.noisable_BxL])) > 8
  return rows, numbers


@pytest.mark.parametrize("changes", [{}, SPLIT], ids=["data", "data_fsdp_tensor"])
def test_eight_devices_write_what_one_does(started, alone, changes):
  rows, numbers = written(build.everything(started | changes))
  jax.tree.map(np.testing.assert_array_equal, rows, alone[0])
  for name, number in numbers.items():
    np.testing.assert_allclose(number, alone[1][name], rtol=1e-6, err_msg=name)


def test_eight_devices_learn_from_it_what_one_does(started, alone):
  """The teacher lies on the mesh as well. It is the student as yet: its masks are filled in."""
  want, got = (
    learned(run, alone[0]) for run in (on_one_device(started), build.everything(started | SPLIT))
  )
  assert want[0] > 1e-3 and want[1] > 1e-3
  np.testing.assert_allclose(got, want, rtol=1e-4)
