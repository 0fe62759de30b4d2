"""Rows and vocabulary split over devices: the same loss and gradients, and only columns cross."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dlm import parallel
from kernels_pallas.linear_xent import linear_xent
from tests.multidevice import meshes

R, D, V = 16, 8, 48
MESHES = [
  {"data": 8},
  {"data": 1, "tensor": 8},
  {"data": 2, "tensor": 4},
  {"data": 1, "fsdp": 4, "tensor": 2},
]


def arrays(dtype=jnp.float32):
  """Hidden, unembed, target, weight; row 5 must not count at all."""
  keys = jax.random.split(jax.random.key(0), 4)
  return (
    jax.random.normal(keys[0], (R, D), dtype).at[5].set(jnp.nan),
    jax.random.normal(keys[1], (V, D), dtype),
    jax.random.randint(keys[2], (R,), 2, V - 1).at[5].set(V),
    jax.random.uniform(keys[3], (R,), minval=0.1).at[5].set(0),
  )


def value_and_gradients(implementation, mesh=None):
  """(total, gradients) of hidden and unembed; with a mesh each device has its rows and ids."""

  def loss(hidden_RxD, unembed_VxD, target_R, weight_R):
    ce_R = linear_xent(
      hidden_RxD,
      unembed_VxD,
      target_R,
      forbidden=(0, 1, V - 1),
      soft_cap=4.0,
      implementation=implementation,
    )
    return jnp.where(weight_R > 0, weight_R * ce_R, 0).sum()

  return meshes.jitted(jax.value_and_grad(loss, argnums=(0, 1)), mesh)


def shardings(mesh):
  """As in training: the unembedding's rows over "tensor" and its columns over "fsdp"."""
  by_row = NamedSharding(mesh, P(("data", "fsdp")))
  return by_row, NamedSharding(mesh, P("tensor", "fsdp")), by_row, by_row


def assert_close(actual, expected, rtol=2e-5, atol=1e-6):
  for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    got, wanted = (np.asarray(x, np.float32) for x in (got, wanted))
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def expected():
  return value_and_gradients("xla")(*arrays())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("sizes", MESHES)
def test_gradients_of_rows_and_ids_that_are_split(sizes, whole, expected):
  """`whole`: every device is given all rows and ids, of which it takes its own."""
  mesh, args = parallel.make_mesh(**sizes), arrays()
  placed = NamedSharding(mesh, P()) if whole else shardings(mesh)
  assert_close(value_and_gradients(None, mesh)(*jax.device_put(args, placed)), expected)


def test_gradients_are_summed_in_float32():
  """One rounding to bfloat16, as on one device."""
  mesh, args = parallel.make_mesh(data=2, tensor=4), arrays(jnp.bfloat16)
  _, grads = value_and_gradients(None, mesh)(*jax.device_put(args, shardings(mesh)))
  assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
  hidden_RxD, unembed_VxD = (x.astype(jnp.float32) for x in args[:2])
  _, exact = value_and_gradients("xla")(hidden_RxD, unembed_VxD, *args[2:])
  assert_close(grads, exact, rtol=2**-8)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"data": 1, "tensor": 2}])
def test_kernels_split_themselves(sizes, expected):
  mesh = parallel.make_mesh(**sizes, devices=jax.devices()[:2])
  with pltpu.force_tpu_interpret_mode():
    actual = value_and_gradients("tpu", mesh)(*jax.device_put(arrays(), shardings(mesh)))
    assert_close(actual, expected, atol=1e-5)


def test_shards_of_a_manual_mesh_keep_their_own_shares(expected):
  """Within `shard_map` nothing is left to split, and the caller sums."""
  mesh = parallel.make_mesh(data=8)

  def shard(*args):
    total, (d_hidden_RxD, d_unembed_VxD) = value_and_gradients(None)(*args)
    return jax.lax.psum(total, "data"), (d_hidden_RxD, jax.lax.psum(d_unembed_VxD, "data"))

  run = parallel.over_batch(
    shard, mesh, batched_in=(True, False, True, True), batched_out=(False, (True, False))
  )
  assert_close(jax.jit(run)(*arrays()), expected)


def test_what_does_not_divide_is_refused():
  mesh = parallel.make_mesh(data=1, tensor=8)
  hidden_RxD, unembed_VxD, *by_row = arrays()
  with pytest.raises(ValueError, match="not evenly divisible"):
    value_and_gradients(None, mesh)(hidden_RxD, jnp.pad(unembed_VxD, ((0, 1), (0, 0))), *by_row)


def test_only_columns_and_gradients_cross_between_devices():
  mesh = parallel.make_mesh(data=2, tensor=4)
  shapes = [
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    for x, sharding in zip(arrays(), shardings(mesh), strict=True)
  ]
  text = value_and_gradients(None, mesh).lower(*shapes).compile().as_text()
  crossing = {}
  for shapes, kind in re.findall(r"= (.*) (all-[a-z]+|collective-permute)(?:-start)?\(", text):
    sizes = [math.prod(map(int, x.split(","))) for x in re.findall(r"\[(\d[\d,]*)\]", shapes)]
    crossing.setdefault(kind, []).extend(sizes)
  assert crossing.keys() == {"all-gather", "all-reduce"}
  assert max(crossing["all-gather"]) <= R // 2 * 4  # a column of each of four devices
  assert max(crossing["all-reduce"]) == V // 4 * D  # the gradient of a device's ids
