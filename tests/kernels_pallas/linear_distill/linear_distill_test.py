"""Divergences and gradients against float64 numpy; memory that does not grow with ids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.linear_distill import IMPLEMENTATIONS, Spec, linear_distill

ROWS, VOCAB, WIDTH, TEACHER_WIDTH = 11, 38, 8, 6
CALLS = {
  "reference": IMPLEMENTATIONS["reference"],
  "xla": IMPLEMENTATIONS["xla"],
  "xla in tiles": functools.partial(IMPLEMENTATIONS["xla"], tile=7),
  # Tiles that neither rows nor ids fill, in stretches of which the last meets ids again.
  "tpu": functools.partial(IMPLEMENTATIONS["tpu"], tile=(8, 8), stretch=16),
}
SPECS = [
  Spec(),
  Spec(reverse=1.0, soft_cap=5.0, teacher_soft_cap=3.0),
  Spec(0.3, 2.0, 0.7, soft_cap=5.0, forbidden=(*range(8), VOCAB - 2)),  # all of the first tile
]


def arrays():
  rng = np.random.default_rng()
  shapes = (ROWS, WIDTH), (VOCAB, WIDTH), (ROWS, TEACHER_WIDTH), (VOCAB, TEACHER_WIDTH)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def expected(spec, weight_R, hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE):
  """Nats, and gradients of their weighted sum, by the book in float64."""

  def logp(hidden, unembed, cap, temperature):
    z_RxV = hidden.astype(np.float64) @ unembed.astype(np.float64).T
    z_RxV = z_RxV if cap is None else cap * np.tanh(z_RxV / cap)
    slope_RxV = np.ones_like(z_RxV) if cap is None else 1 - (z_RxV / cap) ** 2
    z_RxV = z_RxV / temperature
    z_RxV[:, list(spec.forbidden)] = -1e30
    return z_RxV - np.log(np.exp(z_RxV).sum(1, keepdims=True)), slope_RxV / temperature

  q_RxV, slope_RxV = logp(hidden_RxD, unembed_VxD, spec.soft_cap, spec.temperature)
  p_RxV, _ = logp(
    teacher_hidden_RxE, teacher_unembed_VxE, spec.teacher_soft_cap, spec.teacher_temperature
  )
  forward_R = (np.exp(p_RxV) * (p_RxV - q_RxV)).sum(1)
  reverse_R = (np.exp(q_RxV) * (q_RxV - p_RxV)).sum(1)
  d_z_RxV = (1 - spec.reverse) * (np.exp(q_RxV) - np.exp(p_RxV))
  d_z_RxV += spec.reverse * np.exp(q_RxV) * (q_RxV - p_RxV - reverse_R[:, None])
  d_z_RxV *= weight_R[:, None] * slope_RxV
  nats_R = (1 - spec.reverse) * forward_R + spec.reverse * reverse_R
  return nats_R, (d_z_RxV @ unembed_VxD, d_z_RxV.T @ hidden_RxD)


def gradients(name, spec):
  """Of (weights, *operands): gradients of the weighted sum, and nats."""

  def run(weight_R, *args):
    def loss(hidden_RxD, unembed_VxD):
      nats_R = CALLS[name](hidden_RxD, unembed_VxD, *args[2:], spec)
      return jnp.where(weight_R > 0, weight_R * nats_R, 0).sum(), nats_R

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(*args[:2])

  return jax.jit(run)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_and_rows_that_are_dropped(spec, name):
  weight_R = np.linspace(0.2, 3, ROWS, dtype=np.float32)
  args = arrays()
  if name != "reference":  # that differentiates by the book
    weight_R[3] = 0
  run = gradients(name, spec)
  with pltpu.force_tpu_interpret_mode():
    grads, nats_R = run(weight_R, *args)
    wanted_R, wanted = expected(spec, weight_R, *args)
    np.testing.assert_allclose(nats_R, wanted_R, rtol=2e-5, atol=8e-6)
    assert wanted_R.max() > 0.1
    for actual, grad in zip(grads, wanted, strict=True):
      np.testing.assert_allclose(actual, grad, rtol=4e-5, atol=2e-5)
    np.testing.assert_array_equal(grads[1][np.array(spec.forbidden, int)], 0)
    if name != "reference":
      args[0][3], args[2][3] = np.nan, np.inf
      jax.tree.map(np.testing.assert_array_equal, run(weight_R, *args)[0], grads)


@pytest.mark.parametrize("name", ["xla in tiles", "tpu"])
def test_bfloat16_is_rounded_once_or_in_kernels_twice(name):
  """Against float64 of the same numbers; a teacher of another type keeps its own."""
  weight_R = np.linspace(0.2, 3, ROWS, dtype=np.float32)
  hidden_RxD, unembed_VxD, *teacher = arrays()
  student = [jnp.asarray(x, jnp.bfloat16) for x in (hidden_RxD, unembed_VxD)]
  with pltpu.force_tpu_interpret_mode():
    grads, nats_R = gradients(name, SPECS[2])(weight_R, *student, *teacher)
  exact = [np.asarray(x, np.float32) for x in student]
  wanted_R, wanted = expected(SPECS[2], weight_R, *exact, *teacher)
  np.testing.assert_allclose(nats_R, wanted_R, rtol=2e-5, atol=8e-6)
  for actual, grad in zip(grads, wanted, strict=True):
    assert actual.dtype == jnp.bfloat16
    largest = np.abs(grad).max()
    np.testing.assert_allclose(actual.astype(np.float32), grad, rtol=8e-3, atol=4e-3 * largest)


@pytest.mark.parametrize("name", ["xla in tiles", "tpu"])
def test_extreme_logits(name):
  """Of one id each gets all, and the other side's logit of it is 10,000 or 20,000 lower."""
  logits_RxV = np.float32([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]])
  teacher_RxV = np.float32([[-1e4, 0, 1e4], [1e4, 1e4, 1e4]])
  ids = np.eye(3, dtype=np.float32)
  with pltpu.force_tpu_interpret_mode():
    grads, nats_R = gradients(name, Spec(0.5))(np.ones(2), logits_RxV, ids, teacher_RxV, ids)
  np.testing.assert_allclose(nats_R, [2e4, 0], atol=1e-2)
  np.testing.assert_allclose(grads[0], [[0.5, 0, -0.5], [0, 0, 0]], atol=1e-2)


def test_memory_does_not_grow_with_the_vocabulary():
  """At LLaDA's vocabulary and half of it: beside the unembedding's gradient, a few tiles."""
  rows, width = 1024, 8

  def beside(implementation, vocab):
    def loss(*args):
      return linear_distill(*args, Spec(reverse=0.5), implementation=implementation).sum()

    shapes = [(rows, width), (vocab, width)] * 2
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  half, whole = (beside("xla", vocab) for vocab in (63_232, 126_464))
  assert abs(whole - half) < 0.01 * half, (half, whole)
  assert whole < 8 * 4 * (1 << 20)
  assert beside("reference", 63_232) > 4 * rows * 63_232  # so the test can fail


def test_bad_arguments():
  hidden_RxD, unembed_VxD, *teacher = map(jnp.asarray, arrays())
  with pytest.raises(ValueError, match="equally many ids, not 38 and 37"):
    linear_distill(hidden_RxD, unembed_VxD, teacher[0], teacher[1][1:], Spec())
  with pytest.raises(ValueError, match="equally many rows, not 11 and 10"):
    linear_distill(hidden_RxD, unembed_VxD, teacher[0][1:], teacher[1], Spec())
  with pytest.raises(ValueError, match="reverse=2"):
    Spec(reverse=2)
  with pytest.raises(ValueError, match="temperature=0"):
    Spec(temperature=0)
