"""Trajectories with tools are those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import episodes, parallel
from dlm.train import Step
from dlm.types import Batch
from tests.dlm import episodes_test

CONFIG, base = episodes_test.CONFIG, episodes_test.base
# In the order of the text: that of confidences may turn by a rounding.
IN_ORDER = {"name": "left_to_right", "k": 1}
FIELDS = {
  "batch": 16, "tools.turns": 1, "rollout.may_predict_mask": False, "tools.answer": IN_ORDER,
  "rollout.policy": CONFIG["rollout"]["policy"] | {"inner": IN_ORDER},
}  # fmt: skip


def written(run):
  params, batch = Step(run).init().params, Batch(*map(jnp.asarray, run.rows[0]))
  return jax.tree.map(np.asarray, episodes.of(run)(params, batch, jax.random.key(0)))


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 4, "fsdp": 2}], ids=["data", "data_fsdp"])
def test_eight_devices_write_what_one_does(base, mesh):
  run = episodes_test.training(base, **FIELDS, mesh=mesh)
  rows, told = written(run)
  one = parallel.make_mesh(1, devices=jax.devices()[:1])
  want, told_alone = written(dataclasses.replace(run, mesh=one))
  jax.tree.map(np.testing.assert_array_equal, rows, want)
  assert told["rollout/calls"] == told_alone["rollout/calls"] == 1
