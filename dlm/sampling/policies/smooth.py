"""What was predicted stays in the input: masked slots that lean to their last prediction."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from dlm.types import Array, Decision, Policy, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Smooth:
  """Adds to a masked slot's embedding the mean embedding of its last prediction; `inner` decides.

  dInfer's iteration smoothing, arXiv 2510.08666; as its code does it. The mean is over the model's
  whole distribution, and its weight grows with the row's forwards: `start`, then `growth` more each
  time, `limit` in the end. A slot outside the window keeps what it had. The authors let the
  threshold fall meanwhile: `decay` of policies "threshold" and "hierarchy".
  """

  scope = "canvas"
  inner: Policy
  start: float = 0.15
  growth: float = 0.02
  limit: float = 0.3

  def needs(self) -> StatSpec:
    return dataclasses.replace(self.inner.needs(), soft=True)

  def enter(self, masked_BxA: Array, state: Any) -> Any:
    return self.inner.enter(masked_BxA, state)

  def decide(self, view: View, state: Any, key_B: Array) -> tuple[Decision, Any]:
    return self.inner.decide(view, state, key_B)

  def soft_weight(self, turn_B: Array) -> Array:
    return jnp.minimum(self.start + self.growth * turn_B, self.limit)

  def gather_ids(self, state: Any) -> Array:
    return self.inner.gather_ids(state)
