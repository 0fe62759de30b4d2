"""Schedules against EC-DLM's table of capacities, and what follows for buffers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm.models import MoeConfig
from dlm.models.moe import capacity
from dlm.models.moe.schedules import SCHEDULES

MOE = MoeConfig(
  experts=64, per_token=8, mlp=1, choice="expert", schedule="linear", per_token_range=(8, 32),
  sigma=0.22,
)  # fmt: skip
LEVELS = jnp.array([0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1])


def scheduled(schedule: str, ends=(8, 32)) -> MoeConfig:
  return dataclasses.replace(MOE, schedule=schedule, per_token_range=ends)


@pytest.mark.parametrize(
  ("schedule", "want"),
  [
    ("linear", [8, 10, 14, 18, 20, 22, 26, 30, 32]),
    ("linear_reverse", [32, 30, 26, 22, 20, 18, 14, 10, 8]),
    ("cosine", [8, 9, 12, 16, 20, 24, 28, 31, 32]),
    ("cosine_reverse", [32, 31, 28, 24, 20, 16, 12, 9, 8]),
    ("bell", [8, 17, 26, 31, 32, 31, 26, 17, 8]),
    ("bell_gaussian", [8, 11, 20, 29, 32, 29, 20, 11, 8]),
    ("bell_gaussian_reverse", [32, 29, 20, 11, 8, 11, 20, 29, 32]),
  ],
)
def test_experts_of_a_token_follow_the_level(schedule, want):
  assert capacity.per_token(scheduled(schedule), LEVELS).tolist() == want


def test_halves_are_rounded_to_even():
  levels = jnp.array([1, 3, 5]) / 48
  assert capacity.per_token(scheduled("linear_reverse"), levels).tolist() == [32, 30, 30]


def test_every_schedule_has_its_mean():
  level = (jnp.arange(20000) + 0.5) / 20000
  for schedule, (share, _) in SCHEDULES.items():
    moe = scheduled(schedule)
    mean = 8 + 24 * float(np.mean(share(level, moe.sigma)))
    assert moe.mean_per_token() == pytest.approx(mean, rel=1e-4)
  published = {"bell": 24.0, "bell_gaussian": 20.03, "bell_gaussian_reverse": 19.97}
  for schedule, mean in published.items():
    assert scheduled(schedule).mean_per_token() == pytest.approx(mean, abs=0.005)


def test_static_schedules_read_no_level():
  moe = dataclasses.replace(MOE, schedule="static", per_token_range=None)
  assert capacity.per_token(moe, LEVELS).tolist() == [8] * 9
  assert (moe.reads_noise, MOE.reads_noise) == (False, True)
  assert capacity.buffer_sizes(moe, 4, 32) == (4 * 4,)


def test_an_expert_takes_its_share_rounded_down_but_at_least_one():
  k, tokens = jnp.array([20, 1, 8, 8, 8]), jnp.array([512, 32, 32, 7, 0])
  assert capacity.tokens_per_expert(k, tokens, 64).tolist() == [160, 1, 4, 1, 0]
  everyone = capacity.tokens_per_expert(jnp.array([4, 4]), jnp.array([5, 1]), 4)
  assert everyone.tolist() == [5, 1], "an expert takes no token twice"


def test_buffers_hold_whatever_levels_ask_and_few_sizes_are_compiled():
  sizes = capacity.buffer_sizes(scheduled("linear", (2, 14)), 32, 128)
  least, most = 32 * 4, 32 * 28
  assert (sizes[0], sizes[-1], len(sizes)) == (least, most, capacity.SIZES)
  assert list(sizes) == sorted(set(sizes))
  assert max(np.diff(sizes)) - min(np.diff(sizes)) <= 1
  assert capacity.buffer_sizes(scheduled("linear", (4, 5)), 1, 64) == (4, 5)
  assert capacity.buffer_sizes(scheduled("linear", (4, 4)), 3, 64) == (12,)


def test_levels_may_be_traced():
  run = jax.jit(functools.partial(capacity.per_token, MOE))
  np.testing.assert_array_equal(run(LEVELS), capacity.per_token(MOE, LEVELS))
