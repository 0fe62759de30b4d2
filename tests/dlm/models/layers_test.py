"""Products of bfloat16: the exact sum, rounded once; gradients of the plain product."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dlm.models.layers import WIDE_ROWS, product

EQN = "RC,CD->RD"


@pytest.mark.parametrize("rows", [WIDE_ROWS - 1, WIDE_ROWS])
def test_products_of_bfloat16(rows):
  draw = np.random.default_rng(0)
  x, kernel = draw.integers(-8, 9, (rows, 64)), draw.integers(-8, 9, (64, 32))
  narrow = x.astype(ml_dtypes.bfloat16), kernel.astype(ml_dtypes.bfloat16)
  ours, plain = functools.partial(product, EQN), functools.partial(jnp.einsum, EQN)

  @jax.jit
  def both(x, kernel, dy):
    out, pullback = jax.vjp(ours, x, kernel)
    _, plainly = jax.vjp(plain, x, kernel)
    return ours(x, kernel), out, pullback(dy), plainly(dy)

  dy = draw.normal(size=(rows, 32)).astype(ml_dtypes.bfloat16)
  alone, out, got, want = both(*narrow, dy)
  exact = (x @ kernel).astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(alone, exact)
  np.testing.assert_array_equal(out, exact)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert ("preferred_element_type=float32" in str(jax.make_jaxpr(ours)(*narrow))) == (rows >= 8)
