"""How many experts a token has, by noise level (EC-DLM, arXiv 2604.01622, "dynamic budgets")."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dlm.types import Array


class ExpertSchedule(NamedTuple):
  """The share of the way from the least to the most experts; `sigma` is a bell's width."""

  share: Callable[[Array, float], Array]  # of a noise level in [0, 1]
  mean: Callable[[float], float]  # over noise levels ~ U(0, 1)


def _foot(sigma: float) -> float:
  return math.exp(-0.125 / sigma**2)


def _bell(level: Array, sigma: float) -> Array:
  foot = _foot(sigma)
  return jnp.clip((jnp.exp(-((level - 0.5) ** 2) / (2 * sigma**2)) - foot) / (1 - foot), 0, 1)


def _mean_of_bell(sigma: float) -> float:
  foot = _foot(sigma)
  area = sigma * math.sqrt(2 * math.pi) * math.erf(0.5 / (sigma * math.sqrt(2)))
  return (area - foot) / (1 - foot)


def _half(sigma: float) -> float:
  return 0.5


SCHEDULES: dict[str, ExpertSchedule] = {
  "linear": ExpertSchedule(lambda level, sigma: level, _half),
  "linear_reverse": ExpertSchedule(lambda level, sigma: 1 - level, _half),
  "cosine": ExpertSchedule(lambda level, sigma: (1 - jnp.cos(math.pi * level)) / 2, _half),
  "cosine_reverse": ExpertSchedule(lambda level, sigma: (1 + jnp.cos(math.pi * level)) / 2, _half),
  "bell": ExpertSchedule(lambda level, sigma: 1 - 4 * (level - 0.5) ** 2, lambda sigma: 2 / 3),
  "bell_gaussian": ExpertSchedule(_bell, _mean_of_bell),
  "bell_gaussian_reverse": ExpertSchedule(
    lambda level, sigma: 1 - _bell(level, sigma), lambda sigma: 1 - _mean_of_bell(sigma)
  ),
}
