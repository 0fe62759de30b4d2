"""Products of bfloat16: the exact sum, rounded once; gradients of the plain product."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dlm.models.layers import lookup, product

EQN = "RC,CD->RD"


@pytest.mark.parametrize("rows", [1, 2, 8])
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


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_no_kernel_is_widened_for_it(rows):
  """XLA's CPU backend would, for float32 results of one row, and for bfloat16 results of any."""
  x = jax.ShapeDtypeStruct((rows, 512), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16)
  needs = jax.jit(functools.partial(product, EQN)).lower(x, kernel).compile().memory_analysis()
  assert needs.temp_size_in_bytes < 2 * 4 * 1024 * max(rows, 2) + 4096


def test_rows_of_an_embedding_and_their_gradient():
  draw, ids = np.random.default_rng(0), jnp.array([[3, 0, 3], [7, 9, 5]])  # 9 is past the last
  table = jnp.asarray(draw.normal(size=(8, 4)), jnp.bfloat16)
  dy = jnp.asarray(draw.integers(-4, 5, (2, 3, 4)), jnp.bfloat16)

  @jax.jit
  def both(table):
    out, pullback = jax.vjp(lambda table: lookup(table, ids), table)
    return out, pullback(dy)[0]

  out, d_table = both(table)
  near = np.minimum(ids, 7)
  np.testing.assert_array_equal(out, np.asarray(table)[near])
  expected = np.zeros((8, 4), np.float32)
  np.add.at(expected, near, np.asarray(dy, np.float32))
  np.testing.assert_array_equal(d_table, expected)


def test_no_embedding_is_widened_or_copied_for_it():
  """In a loop, as a sampler's: what does not change in it XLA takes out of it."""
  table, ids = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16), jnp.zeros((1, 4), jnp.int32)

  def sampled(table, ids):
    def forward(_, ids):
      return ids + (lookup(table, ids).astype(jnp.float32).sum(-1) > 0)

    return jax.lax.fori_loop(0, 9, forward, ids)

  needs = jax.jit(sampled).lower(table, ids).compile().memory_analysis()
  assert needs.temp_size_in_bytes < 4 * 512 * 4 * 4
