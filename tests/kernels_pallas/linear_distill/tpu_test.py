"""What only the TPU kernels have: tiles in an order, and sizes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.linear_distill import IMPLEMENTATIONS, Spec, linear_distill, tpu
from tests.kernels_pallas import races

R, V, D, E = 20, 40, 8, 6


def gradients(implementation):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (R, D), (V, D), (R, E), (V, E)
  hidden_RxD, unembed_VxD, *teacher = map(jax.random.normal, keys, shapes)

  def total(hidden_RxD, unembed_VxD):
    return implementation(hidden_RxD, unembed_VxD, *teacher, Spec(0.5)).sum()

  return jax.jit(jax.grad(total, argnums=(0, 1)))(hidden_RxD, unembed_VxD)


def races_of_gradients():
  """Two cores share three tiles of rows; forward, and two stretches of two tiles of ids."""
  of_tiles = functools.partial(IMPLEMENTATIONS["tpu"], tile=(8, 16), stretch=32)
  return races.seen(lambda: gradients(of_tiles))


def test_tiles_do_not_race():
  grads, raced = races_of_gradients()
  assert raced == [False] * 3
  for actual, expected in zip(grads, gradients(IMPLEMENTATIONS["reference"]), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-5)


def test_sums_in_any_order_would_race(monkeypatch):
  """The check above can fail; backward nothing is summed."""
  params = functools.partial(pltpu.CompilerParams, dimension_semantics=("parallel", "parallel"))
  monkeypatch.setattr(
    tpu.pltpu, "CompilerParams", lambda *, dimension_semantics, **others: params(**others)
  )
  assert races_of_gradients()[1] == [True, False, False]


@pytest.mark.parametrize("widths", [(1 << 16, 64), (64, 1 << 16)])
def test_what_does_not_fit_is_refused_before_the_forward_pass(widths):
  heads = [
    jax.ShapeDtypeStruct((count, width), jnp.float32) for width in widths for count in (256, 512)
  ]
  call = functools.partial(linear_distill, spec=Spec(), implementation="tpu")
  with pytest.raises(NotImplementedError, match=r"tiles of 128 rows and 256 ids need .* of VMEM"):
    jax.eval_shape(call, *heads)
