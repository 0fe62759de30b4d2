"""The kernels for Hopper, interpreted, and the stretches of ids that backward goes over."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

from kernels_pallas import hopper
from kernels_pallas.linear_xent import gpu, linear_xent, reference
from tests.kernels_pallas.hopper import interpret_gpu

V, D = 200, 128  # backward takes 128 ids at a time, so that 56 are met twice

# Two slots are refilled all the time. Few rows: the two workers have ids side by side. Many: each
# has rows of its own and walks over two tiles.
FEW = hopper.Tiling(by_ids=True, groups=1, blocks=1, splits=1, walk=1, tile=64, slots=2)
MANY = hopper.Tiling(by_ids=False, groups=1, blocks=1, splits=1, walk=2, tile=64, slots=2)

# XLA runs a warpgroup on each of its threads, and hangs where it has fewer.
threads = pytest.mark.skipif(
  int(os.environ.get("NPROC") or os.cpu_count()) < 8, reason="needs NPROC=8 before jax starts"
)


def weighted(compute, weight_R, target_R, **options):
  """((total, cross-entropies), gradients) of (hidden, unembed), rows of weight 0 dropped."""

  def loss(hidden_RxD, unembed_VxD):
    ce_R = compute(hidden_RxD, unembed_VxD, target_R, **options)
    return jnp.where(weight_R > 0, weight_R * ce_R, 0).sum(), ce_R

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@threads
@pytest.mark.parametrize(
  "rows,stretch,options",
  [
    (20, FEW, {"forbidden": (), "soft_cap": None}),
    (70, MANY, {"forbidden": (0, 150, 151), "soft_cap": 5.0}),
  ],
  ids=["few", "many, capped"],
)
def test_value_and_gradient(rows, stretch, options):
  whole = hopper.tiling_for(rows, V, programs=1, max_tile=64)
  compute = functools.partial(gpu.linear_xent, tilings=(whole, stretch))
  hidden_RxD = np.array(jax.random.normal(jax.random.key(0), (rows, D), jnp.bfloat16) / 4)
  unembed_VxD = jax.random.normal(jax.random.key(1), (V, D), jnp.bfloat16)
  target_R, weight_R = np.arange(rows) * 7 % V, np.linspace(0.2, 3, rows, dtype=np.float32)
  target_R[[1, 2]], weight_R[[1, 2, 3]] = [-1, V], 0
  hidden_RxD[3] = np.nan
  with interpret_gpu():
    run = weighted(compute, weight_R, target_R, **options)
    (total, ce_R), grads = jax.device_get(run(hidden_RxD, unembed_VxD))
    assert not gpu_callbacks.get_races().races_found

  hidden_RxD[3] = 0  # autodiff of the reference would spread its NaN
  exact = hidden_RxD.astype(np.float32), unembed_VxD.astype(jnp.float32)
  plain = weighted(reference.linear_xent, weight_R, target_R, **options)
  (expected_total, expected_R), expected = jax.device_get(plain(*exact))
  np.testing.assert_allclose(total, expected_total, rtol=1e-5)
  used_R = np.arange(rows) != 3
  np.testing.assert_allclose(ce_R[used_R], expected_R[used_R], rtol=1e-5, atol=8e-6)
  assert np.isinf(ce_R[[1, 2]]).all() and np.isnan(ce_R[3])
  for actual, grad in zip(grads, expected, strict=True):
    assert actual.dtype == jnp.bfloat16
    largest = np.abs(grad).max()  # roundings to bfloat16: of logits' gradients, and of the result
    np.testing.assert_allclose(actual.astype(np.float32), grad, rtol=8e-3, atol=4e-3 * largest)
  np.testing.assert_array_equal(grads[0][1:4], 0)
  np.testing.assert_array_equal(grads[1][list(options["forbidden"])], 0)


@pytest.mark.parametrize("rows", [32, 65, 512, 4096, 40_000])
@pytest.mark.parametrize("vocab", [2048, 32_000, 126_464, 157_184])
def test_a_stretch_fits_and_few_ids_are_met_twice(rows, vocab):
  tiling = gpu.stretch_for(rows, vocab)
  assert tiling.rows >= rows and tiling.slots >= 2
  assert 2 * tiling.ids <= vocab and tiling.rows * tiling.ids <= 1 << 25
  done = -(-vocab // tiling.ids) * tiling.ids
  assert done < 1.06 * vocab or vocab == 2048


def test_what_is_left_to_others():
  def call(vocab, dtype=jnp.bfloat16):
    shape = jax.ShapeDtypeStruct
    shapes = shape((70, 64), dtype), shape((vocab, 64), dtype), shape((70,), jnp.int32)
    jax.eval_shape(functools.partial(linear_xent, implementation="gpu"), *shapes)

  with pytest.raises(NotImplementedError, match="bfloat16"):
    call(1024, jnp.float32)
  with pytest.raises(NotImplementedError, match="vocabulary, 504, must be at least two tiles"):
    call(504)
