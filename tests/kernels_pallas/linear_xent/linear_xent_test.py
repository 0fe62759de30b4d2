"""Cross-entropy against float64 numpy, its gradient against autodiff of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.linear_xent import IMPLEMENTATIONS, linear_xent

ROWS, VOCAB, WIDTH = 11, 38, 8
TILED = {"xla": ("xla", None), "xla in tiles": ("xla", 7), "tpu in tiles": ("tpu", (8, 16))}


def tiled(name):
  """`linear_xent(hidden, unembed, target, *, forbidden, soft_cap)` of one implementation."""
  if name == "reference":
    return IMPLEMENTATIONS["reference"]
  implementation, tile = TILED[name]
  return functools.partial(IMPLEMENTATIONS[implementation], tile=tile)


@pytest.fixture(params=["reference", *TILED])
def compute(request):
  with pltpu.force_tpu_interpret_mode():
    yield tiled(request.param)


def inputs(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  hidden_RxD = jnp.asarray(rng.normal(size=(ROWS, WIDTH)) * 2, dtype)
  unembed_VxD = jnp.asarray(rng.normal(size=(VOCAB, WIDTH)), dtype)
  target_R = jnp.asarray(np.arange(ROWS) * 3 + 7)  # 7 .. 37: the last id too
  return hidden_RxD, unembed_VxD, target_R


def weighted(compute, weight_R, target_R, **options):
  """((total, cross-entropies), gradients) of (hidden, unembed), rows of weight 0 dropped."""

  def loss(hidden_RxD, unembed_VxD):
    ce_R = compute(hidden_RxD, unembed_VxD, target_R, **options)
    return jnp.where(weight_R > 0, weight_R * ce_R, 0).sum(), ce_R

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize(
  "dtype,soft_cap,forbidden",
  [
    (jnp.float32, None, ()),
    (jnp.float32, 5.0, (0, 8, VOCAB - 2)),
    (jnp.bfloat16, None, (0, 8, VOCAB - 2)),
    (jnp.bfloat16, 5.0, ()),
  ],
)
def test_value_and_gradient(compute, dtype, soft_cap, forbidden):
  hidden_RxD, unembed_VxD, target_R = inputs(dtype)
  options = {"forbidden": forbidden, "soft_cap": soft_cap}
  z_RxV = np.asarray(hidden_RxD, np.float64) @ np.asarray(unembed_VxD, np.float64).T
  if soft_cap is not None:
    z_RxV = soft_cap * np.tanh(z_RxV / soft_cap)
  z_RxV[:, list(forbidden)] = -np.inf
  expected_R = np.log(np.exp(z_RxV).sum(1)) - z_RxV[np.arange(ROWS), target_R]
  weight_R = jnp.linspace(0.2, 3, ROWS)
  value_and_grad = weighted(compute, weight_R, target_R, **options)
  (_, ce_R), grads = value_and_grad(hidden_RxD, unembed_VxD)
  assert ce_R.dtype == jnp.float32
  np.testing.assert_allclose(ce_R, expected_R, rtol=1e-5, atol=4e-6)
  assert [g.dtype for g in grads] == [dtype, dtype]
  reference = weighted(IMPLEMENTATIONS["reference"], weight_R, target_R, **options)
  _, expected = reference(hidden_RxD.astype(jnp.float32), unembed_VxD.astype(jnp.float32))
  # Of the result, and in kernels of the gradient of logits: roundings to bfloat16.
  rounding = 0 if dtype == jnp.float32 else 4e-3
  for actual, grad in zip(grads, expected, strict=True):
    largest = np.abs(grad).max()
    assert largest > 0.1
    np.testing.assert_allclose(
      actual.astype(jnp.float32), grad, rtol=1e-5 + 2 * rounding, atol=1e-5 + rounding * largest
    )
  np.testing.assert_array_equal(grads[1][jnp.array(forbidden, int)], 0)


def test_inputs_of_two_types_get_gradients_of_their_own(compute):
  hidden_RxD, unembed_VxD, target_R = inputs()
  options = {"forbidden": (), "soft_cap": None}
  both = weighted(compute, jnp.ones(ROWS), target_R, **options)
  _, grads = jax.eval_shape(both, hidden_RxD.astype(jnp.bfloat16), unembed_VxD)
  assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]


def test_extreme_logits(compute):
  target_R = jnp.array([0, 1, 2])
  logits_RxV = jnp.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]])
  loss = weighted(compute, jnp.ones(3), target_R, forbidden=(), soft_cap=None)
  (total, _), (d_hidden_RxD, _) = loss(logits_RxV, jnp.eye(3))
  np.testing.assert_allclose(total, 1e4 + np.log(3), rtol=1e-6)
  expected_RxV = [[0, 0, 0], [1, -1, 0], [1 / 3, 1 / 3, -2 / 3]]
  np.testing.assert_allclose(d_hidden_RxD, expected_RxV, atol=1e-3)  # float32 around 1e4


def test_a_target_that_does_not_exist_costs_infinity_and_weighs_nothing_if_dropped(compute):
  hidden_RxD, unembed_VxD, target_R = inputs()
  options = {"forbidden": (5,), "soft_cap": None}
  bad_R = jnp.array([1, 4, 6])
  bad_target_R = target_R.at[bad_R].set(jnp.array([5, VOCAB, -100]))
  weight_R = jnp.ones(ROWS).at[bad_R].set(0)
  loss = weighted(compute, weight_R, bad_target_R, **options)
  (total, ce_R), grads = loss(hidden_RxD, unembed_VxD)
  np.testing.assert_array_equal(np.isinf(ce_R), np.isin(np.arange(ROWS), bad_R))
  reference = weighted(IMPLEMENTATIONS["reference"], weight_R, target_R, **options)
  (expected_total, _), expected = reference(hidden_RxD, unembed_VxD)
  np.testing.assert_allclose(total, expected_total, rtol=1e-5)
  for actual, grad in zip(grads, expected, strict=True):
    np.testing.assert_allclose(actual, grad, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(grads[0][bad_R], 0)


@pytest.mark.parametrize("name", TILED)
def test_a_dropped_row_of_nan_touches_no_gradient(name):
  hidden_RxD, unembed_VxD, target_R = inputs()
  weight_R = jnp.ones(ROWS).at[3].set(0).at[8].set(0)
  with pltpu.force_tpu_interpret_mode():
    loss = weighted(tiled(name), weight_R, target_R, forbidden=(), soft_cap=5.0)
    (total, _), grads = loss(hidden_RxD, unembed_VxD)
    hidden_RxD = hidden_RxD.at[3].set(jnp.nan).at[8].set(jnp.inf)
    (same_total, _), same_grads = loss(hidden_RxD, unembed_VxD)
  jax.tree.map(np.testing.assert_array_equal, (same_total, same_grads), (total, grads))
  np.testing.assert_array_equal(same_grads[0][jnp.array([3, 8])], 0)


def test_memory_does_not_grow_with_rows_times_vocabulary():
  def temporaries(implementation, rows, vocab):
    def loss(hidden_RxD, unembed_VxD, target_R):
      return linear_xent(hidden_RxD, unembed_VxD, target_R, implementation=implementation).sum()

    shapes = [((rows, 8), jnp.float32), ((vocab, 8), jnp.float32), ((rows,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  for rows in (512, 2048):
    small, large = (temporaries("xla", rows, vocab) for vocab in (8192, 65_536))
    d_unembed = 4 * 8 * 65_536
    assert large - small < 2 * d_unembed, (rows, small, large)
    assert large < 2 * d_unembed + 6 * 4 * rows * max(512, (1 << 20) // rows), (rows, large)
  assert temporaries("reference", 512, 65_536) >= 4 * 512 * 65_536  # so the test can fail


def test_mistakes_are_named():
  hidden_RxD, unembed_VxD, target_R = inputs()
  with pytest.raises(ValueError, match=r"target_R must be an integer for each of 11 rows"):
    linear_xent(hidden_RxD, unembed_VxD, target_R.astype(jnp.float32))
  with pytest.raises(ValueError, match=r"target_R must be an integer for each of 11 rows"):
    linear_xent(hidden_RxD, unembed_VxD, target_R[:3])
  with pytest.raises(ValueError, match=r"forbidden ids \[-1\]"):
    linear_xent(hidden_RxD, unembed_VxD, target_R, forbidden=(-1,))
  with pytest.raises(ValueError, match="implementation='cuda' must name some of reference, xla"):
    linear_xent(hidden_RxD, unembed_VxD, target_R, implementation="cuda")
