"""Rows and vocabulary split over devices: the same divergence and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dlm import parallel
from kernels_pallas.linear_distill import Spec, linear_distill
from tests.multidevice import meshes

R, D, E, V = 16, 8, 4, 48
SPEC = Spec(0.4, 1.5, forbidden=(0, 1, V - 1), soft_cap=4.0)


def arrays():
  """Student, teacher, weight; row 5 must not count at all."""
  rng = np.random.default_rng(0)
  student, teacher = (
    [rng.normal(size=shape).astype(np.float32) for shape in ((R, width), (V, width))]
    for width in (D, E)
  )
  weight_R = rng.uniform(0.1, 1, R).astype(np.float32)
  student[0][5], weight_R[5] = np.nan, 0
  return *student, *teacher, weight_R


def value_and_gradients(mesh=None, implementation=None):
  def loss(hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE, weight_R):
    student, teacher = (hidden_RxD, unembed_VxD), (teacher_hidden_RxE, teacher_unembed_VxE)
    nats_R = linear_distill(*student, *teacher, SPEC, implementation=implementation)
    return jnp.where(weight_R > 0, weight_R * nats_R, 0).sum()

  return meshes.jitted(jax.value_and_grad(loss, argnums=(0, 1)), mesh)


def placed(mesh):
  by_row, by_id = (NamedSharding(mesh, P(axes)) for axes in (("data", "fsdp"), "tensor"))
  return jax.device_put(arrays(), (by_row, by_id, by_row, by_id, by_row))


def assert_close(actual, expected, atol=1e-6):
  for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=atol)


@pytest.fixture(scope="module")
def expected():
  return value_and_gradients()(*arrays())


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "tensor": 4}])
def test_gradients_of_rows_and_ids_that_are_split(sizes, expected):
  mesh = parallel.make_mesh(**sizes)
  assert_close(value_and_gradients(mesh)(*placed(mesh)), expected)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"data": 1, "tensor": 2}])
def test_kernels_split_themselves(sizes, expected):
  mesh = parallel.make_mesh(**sizes, devices=jax.devices()[:2])
  with pltpu.force_tpu_interpret_mode():
    assert_close(value_and_gradients(mesh, "tpu")(*placed(mesh)), expected, atol=1e-5)
