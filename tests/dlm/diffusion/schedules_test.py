"""Schedules: the four ways of saying the same curve agree, and say what the papers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.diffusion import schedules
from dlm.diffusion.schedules import SCHEDULES

T = jnp.linspace(0.01, 0.99, 99)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ways_of_saying_one_curve_agree(name):
  schedule = SCHEDULES[name]()
  p = schedule.masked(T)
  assert (p > 0).all() and (p <= 1).all() and (jnp.diff(p) >= 0).all()
  np.testing.assert_allclose(schedule.alpha(T), 1 - p, atol=1e-6)
  above_floor = p > 1e-3  # where Bd3Power's p is the power itself
  slope = jax.vmap(jax.grad(lambda t: schedule.alpha(t)))(T)
  if name == "duo_cosine":
    slope /= 1 - schedule.eps  # by the authors' own time
  np.testing.assert_allclose(schedule.dalpha(T)[above_floor], slope[above_floor], rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weight_makes_a_bound(name):
  """w dt = dp/p, the same for every curve but for the authors' known exceptions."""
  schedule = SCHEDULES[name]()
  want = -schedule.dalpha(T) / schedule.masked(T)
  if name == "llada_linear":
    want /= 1 - schedule.eps  # divided by the density of p, uniform on [eps, 1]
  if name == "mdlm_log_uniform":  # counts the levels above p1 too
    want *= np.log(1 - np.exp(-1e-3)) / np.log((1 - np.exp(-1e-3)) / (1 - 1e-3))
  departs = np.abs(np.asarray(schedule.weight(T) / want) - 1).max()
  no_bound = ("geometric_sigma", "bd3_square", "bd3_square_root", "bd3_cosine")
  assert schedule.bound == (name not in no_bound)
  assert departs > 1e-4 if name == "bd3_cosine" else departs < 1e-4


def test_log_uniform_noise_weighs_all_masked_tokens_alike():
  schedule, t = schedules.MdlmLogUniform(), jnp.array([0.0, 0.25, 0.5, 1.0])
  p0, p1 = 1 - np.exp(-1e-3), 1 - 1e-3
  np.testing.assert_allclose(schedule.masked(t), p0 ** (1 - t) * p1**t, rtol=1e-5)
  np.testing.assert_allclose(schedule.weight(t), 6.9082552, rtol=1e-7)


def test_no_digit_is_lost_where_little_is_masked():
  t = jnp.float32(1e-4)
  small = float(schedules.MdlmCosine().masked(t))
  assert small == pytest.approx(0.999 * (1 - np.cos(np.pi / 2 * 1e-4)), rel=1e-5)


@pytest.mark.parametrize(
  ("schedule", "alpha"),
  [
    (schedules.LogLinear(), 1 - 0.999 / 2),
    (schedules.Linear(), 0.5),
    (schedules.MdlmCosine(), 1e-3 + 0.999 * np.cos(np.pi / 4)),
    (schedules.MdlmCosineSquared(), 1e-3 + 0.999 / 2),
    (schedules.MdlmLogUniform(), 1 - np.sqrt((1 - np.exp(-1e-3)) * (1 - 1e-3))),
    (schedules.LinearSigma(), np.exp(-(1e-3 + 7) / 2)),
    (schedules.GeometricSigma(), np.exp(-np.sqrt(1e-3))),
    (schedules.Md4Linear(), 0.5),
    (schedules.Md4Poly(3.0), 1e-4 + (1 - 2e-4) * (1 - 0.125)),
    (schedules.Md4Cosine(), 1e-4 + (1 - 2e-4) * (1 - np.cos(np.pi / 4))),
    (schedules.DuoCosine(), 1 - np.cos(np.pi / 2 * (1 - 0.999 / 2))),
    (schedules.Bd3Power(), 0.75),
    (schedules.Bd3SquareRoot(), 1 - np.sqrt(0.5)),
    (schedules.Bd3Log(), 1 - np.log2(1.5)),
    (schedules.Bd3Cosine(), 0.999 * np.cos(np.pi / 4)),
    (schedules.LladaLinear(), 1 - (0.999 / 2 + 1e-3)),
  ],
)
def test_published_forms_at_half_time(schedule, alpha):
  assert float(schedule.alpha(jnp.float32(0.5))) == pytest.approx(alpha, rel=1e-5)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: schedules.LogLinear(eps=1.0), r"LogLinear: eps=1.0 must lie in \[0, 1\)"),
    (lambda: schedules.MdlmLogUniform(eps=0.0), r"MdlmLogUniform: eps=0.0 must lie in \(0, 0.5\)"),
    (lambda: schedules.Md4Cosine(eps=0.5), r"Md4Cosine: eps=0.5 must lie in \[0, 0.5\)"),
    (lambda: schedules.LinearSigma(sigma_min=8.0), "sigma_min=8.0 must be positive and below"),
  ],
)
def test_values_that_make_no_schedule(make, words):
  with pytest.raises(ValueError, match=words):
    make()
