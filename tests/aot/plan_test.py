"""An update for 64 chips of a pod, compiled here: devices exchange beside products."""

import math

import pytest

from dlm import build, parallel, plan
from kernels_pallas import aot

RUN = dict(
  steps=10,
  batch=64,
  mesh=dict(data=1, fsdp=64),
  model=dict(
    width=256, layers=2, heads=2, kv_heads=2, head_dim=128, mlp=512, vocab=512,
    dtype="bfloat16", remat=True,
  ),
  objective=dict(name="llada"),
  data=dict(sources=(("stdlib", 1.0),), length=256),
  optimizer=dict(lr=1e-3),
  checkpoint=dict(keep_best=0),
)  # fmt: skip


@pytest.mark.tpu
def test_an_update_of_a_pod_is_planned():
  training, chip = plan.training(build.RunConfig.of(RUN), "v5p:4x4x4")
  made = plan.update(training, chip)
  state = 4 * training.model.config.n_params() / 64
  assert made.parameters == pytest.approx(state, rel=0.01)  # norms are whole everywhere
  assert made.optimizer == pytest.approx(2 * state, rel=0.01)
  assert made.other < 1 << 20
  assert made.parameters + made.optimizer < made.peak < made.memory / 20
  assert made.flops_formula < made.flops_counted < 2 * made.flops_formula  # layers again
  assert made.traffic["all-gather"].asynchronous > 0  # without `overlap` all are all-reduces
  assert not made.open_loops
  assert any("dlm/" in each.source or "kernels_pallas/" in each.source for each in made.largest)


@pytest.mark.tpu
def test_axes_of_a_mesh_may_share_an_axis_of_the_torus():
  """8 x 8 on 4 x 4 x 4: each axis of the mesh is a box of it, 4 x 2 x 1 or so."""
  mesh = parallel.make_mesh(data=1, fsdp=8, expert=8, devices=aot.tpus("v5p:4x4x4"))
  devices = mesh.devices.reshape(8, 8)
  for line in (*devices, *devices.T):
    sides = [len(set(along)) for along in zip(*(each.coords for each in line), strict=True)]
    assert math.prod(sides) == 8
