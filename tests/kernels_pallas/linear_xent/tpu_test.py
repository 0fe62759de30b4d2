"""What only the TPU kernels have: tiles in an order, and sizes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.linear_xent import IMPLEMENTATIONS, linear_xent, tpu
from tests.kernels_pallas import races


def gradients(implementation):
  hidden_RxD = jax.random.normal(jax.random.key(0), (20, 8))
  unembed_VxD = jax.random.normal(jax.random.key(1), (40, 8))

  def total(hidden_RxD, unembed_VxD):
    ce_R = implementation(hidden_RxD, unembed_VxD, jnp.arange(20), forbidden=(), soft_cap=None)
    return ce_R.sum()

  return jax.jit(jax.grad(total, argnums=(0, 1)))(hidden_RxD, unembed_VxD)


def races_of_gradients():
  """Two cores share three tiles of rows, or of ids; each meets three of the other kind."""
  return races.seen(lambda: gradients(functools.partial(IMPLEMENTATIONS["tpu"], tile=(8, 16))))


def test_tiles_do_not_race():
  grads, raced = races_of_gradients()
  assert raced == [False] * 3
  for actual, expected in zip(grads, gradients(IMPLEMENTATIONS["reference"]), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=4e-6)


def test_sums_in_any_order_would_race(monkeypatch):
  """The check above can fail."""
  params = functools.partial(pltpu.CompilerParams, dimension_semantics=("parallel", "parallel"))
  monkeypatch.setattr(
    tpu.pltpu, "CompilerParams", lambda *, dimension_semantics, **others: params(**others)
  )
  assert races_of_gradients()[1] == [True] * 3


def test_what_does_not_fit_is_refused_before_the_forward_pass():
  shape = jax.ShapeDtypeStruct
  arguments = shape((256, 1 << 16), jnp.float32), shape((512, 1 << 16), jnp.float32)
  call = functools.partial(linear_xent, implementation="tpu")
  with pytest.raises(NotImplementedError, match=r"tiles of 128 rows and 256 ids need .* of VMEM"):
    jax.eval_shape(call, *arguments, shape((256,), jnp.int32))
