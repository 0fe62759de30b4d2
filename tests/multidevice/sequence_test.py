"""Rows whose positions are split over devices: losses and gradients are those of one device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dlm import build, masks, parallel
from dlm.models.moe.training import penalised
from dlm.train import Step
from dlm.types import Batch
from kernels_pallas import shards
from kernels_pallas.block_attention import Keys, Part, block_attention, prepare
from tests.dlm.build import directories
from tests.multidevice import meshes

CONFIG = {
  "seed": 0,
  "steps": 2,
  "batch": 8,
  "model": {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 32},
  "data": {"sources": (("lists", 1.0),), "length": 64, "mode": "pad"},
  "optimizer": {"lr": 1e-3},
  "checkpoint": {"keep_best": 0},
}
MOE = {"experts": 4, "per_token": 2, "mlp": 8, "z_loss": 0.1, "balance_loss": 0.1}


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
      loss, aux = training.objective.loss(training.model, params, noisy)
      return penalised(loss, aux), loss

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


def test_losses_and_gradients_are_those_of_one_device():
  config = CONFIG | {"objective": {"name": "mdlm"}}
  sizes = {"data": 2, "sequence": 4}
  (whole, want), (split, got) = on(config, {"data": 1}), on(config, sizes)
  assert_close(got, want)
  assert temporary(split) < 1.6 * temporary(whole) / math.prod(sizes.values())


def test_so_are_those_of_an_imported_model_on_noisy_and_clean_text(tmp_path):
  source = directories.write(tmp_path / "hf", kv_heads=2, spare=9)
  config = CONFIG | {"objective": {"name": "bd3lm", "block": 8}, "init_from": str(source)}
  del config["model"]
  sizes = {"fsdp": 2, "tensor": 2, "sequence": 2}
  (_, want), (_, got) = on(config, {"data": 1}), on(config, sizes)
  assert_close(got, want)


def test_so_are_those_of_experts_where_each_position_is_asked_for_the_next_token():
  config = CONFIG | {"objective": {"name": "mdlm", "shift": 1}}
  config["model"] = CONFIG["model"] | {"moe": MOE}
  (_, want), (_, got) = on(config, {"data": 1}), on(config, {"expert": 2, "sequence": 2})
  assert_close(got, want)


def test_kernels_have_the_keys_of_all_devices_and_equal_work():
  """Of [noisy; clean], with positions in the order that `dealt` gives them."""
  rows, length, heads, dim = 1, 16, 2, 4
  mesh = parallel.make_mesh(data=1, sequence=4, tensor=2)
  mask, at = masks.noisy_clean(rows, length, 4), NamedSharding(mesh, P(None, "sequence", "tensor"))
  rng = np.random.default_rng(0)
  qkv = [rng.normal(size=(rows, 2 * length, heads, dim)).astype(np.float32) for _ in range(3)]
  weight_W = np.arange(2 * length, dtype=np.float32)[None, :, None, None]

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    order_W = np.asarray(shards.dealt(2 * length))
  seen_W = np.asarray(mask.hi_BxWxR - mask.lo_BxWxR).sum(-1)[0]
  assert len(set(seen_W[order_W].reshape(4, -1).sum(1))) == 1 < len(set(seen_W))

  def attention(implementation, order_W, q, k, v):
    sight = prepare(
      masks.taken(mask, order_W), [Keys(jnp.asarray(order_W, jnp.int32)[None])],
      heads=heads, kv_heads=heads, implementation=implementation,
    )  # fmt: skip

    def total(*qkv):
      q, k, v = (x[:, order_W] for x in qkv)
      y = block_attention(q, [Part(k, v)], sight)
      y = y if implementation == "reference" else shards.collected(y)
      return (y * weight_W).sum(), y

    return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

  split = functools.partial(attention, "tpu", order_W)
  whole = functools.partial(attention, "reference", np.arange(2 * length))
  with pltpu.force_tpu_interpret_mode():
    got = meshes.jitted(split, mesh)(*jax.device_put(qkv, at))
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-4), got, jax.jit(whole)(*qkv)
    )


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"data": CONFIG["data"] | {"length": 60}}, "data.length=60 must divide by mesh.sequence=8"),
    (
      {"model": CONFIG["model"] | {"moe": MOE | {"choice": "expert"}}},
      "moe.choice='expert' does not go with .*=8: experts choose",
    ),
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
