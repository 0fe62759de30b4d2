"""An update for 64 chips of a pod, compiled here: devices exchange beside products."""

import math

import jax
import jax.numpy as jnp
import pytest

from dlm import build, parallel, plan
from dlm.programs import Program
from kernels_pallas import aot

RUN = dict(
  steps=10,
  batch=64,
  mesh=dict(data=1, fsdp=64),
  model=dict(
    width=256, layers=2, heads=2, kv_heads=2, head_dim=128, mlp=512, vocab=640,
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
  assert not made.open_loops and not made.logits and not made.wide
  assert any("dlm/" in each.source or "kernels_pallas/" in each.source for each in made.largest)


@pytest.mark.tpu
@pytest.mark.long
def test_so_is_one_whose_tokens_choose_experts():
  """Which libtpu refuses by an internal error if gathers are fused with products, as others are."""
  moe = dict(experts=32, per_token=4, mlp=128, choice="token")
  run = RUN | dict(mesh=dict(data=1, fsdp=4, expert=16), model=RUN["model"] | dict(moe=moe))
  training, chip = plan.training(build.RunConfig.of(run), "v5p:4x4x4")
  made = plan.update(training, chip)
  assert made.peak > 0 and not made.wide  # gradients of tokens neither


@pytest.mark.tpu
def test_axes_of_a_mesh_may_share_an_axis_of_the_torus():
  """8 x 8 on 4 x 4 x 4: each axis of the mesh is a box of it, 4 x 2 x 1 or so."""
  mesh = parallel.make_mesh(data=1, fsdp=8, expert=8, devices=aot.tpus("v5p:4x4x4"))
  devices = mesh.devices.reshape(8, 8)
  for line in (*devices, *devices.T):
    sides = [len(set(along)) for along in zip(*(each.coords for each in line), strict=True)]
    assert math.prod(sides) == 8


@pytest.mark.tpu
def test_gradients_are_summed_within_a_slice_before_slices_exchange():
  """Of each matrix a chip sends the other slices the sixteenth that it holds, or sums."""
  tpus = aot.tpus("2xv5e:4x4")
  for sizes, split in ((dict(data=1, fsdp=16), "fsdp"), (dict(data=16), None)):
    mesh = parallel.make_mesh(**sizes, dcn=2, devices=tpus)
    slices = [device.slice_index for device in mesh.devices.flat]
    assert slices == 16 * [0] + 16 * [1]
    at = jax.sharding.NamedSharding(mesh, jax.P(split))
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=at)
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32, sharding=parallel.batch_sharding(mesh))
    fn = jax.jit(jax.grad(lambda w, x: jnp.tanh(x @ w).sum()), out_shardings=at)
    compiled = fn.trace(w, x).lower(lowering_platforms=("tpu",)).compile()
    (sent,) = (each for each in Program(compiled.as_text()).collectives() if each.dcn)
    assert (sent.kind, sent.group, sent.bytes) == ("all-reduce", 2, 4 * 1024 * 1024 // 16)


@pytest.mark.tpu
@pytest.mark.parametrize(
  ("topology", "dcn", "message"),
  [
    ("2xv5e:2x2", 1, "mesh.dcn=1 must be the number of slices, 2"),
    ("v5e:2x2", 2, "mesh.dcn=2 must be the number of slices, 1"),
    ("2xv5e:2x2", 2, "must multiply to the number of devices of each of 2 slices, 4"),
  ],
)
def test_a_mesh_has_as_many_slices_as_there_are(topology, dcn, message):
  with pytest.raises(ValueError, match=message):
    parallel.make_mesh(data=2, fsdp=4, dcn=dcn, devices=aot.tpus(topology))
