"""Causal decoding in a window that slides: sure tokens first, near ones before far ones."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class WeDlm(Policy):
  """WeDLM (2512.22737): in a sliding window write the tokens of low entropy, near ones first.

  Of a causal model that predicts masks at their own positions. A forward reads what is known of the
  window before its masks (`dlm.sampling.sliding`). Every mask is written whose entropy plus
  `penalty` for each slot behind the first mask lies below `threshold`; if there is none, the one
  for which that sum is smallest. The window is the sampler's block, theirs 16.

  Args:
    threshold: nats; None: always one token a forward.
    penalty: nats a slot.
  """

  slides = True
  threshold: float | None = 0.6
  penalty: float = 0.02

  def __post_init__(self):
    if self.threshold is not None and not self.threshold >= 0:
      raise ValueError(f"wedlm: threshold={self.threshold} must not be negative, or None for off")
    if not self.penalty >= 0:
      raise ValueError(f"wedlm: penalty={self.penalty} must not be negative")

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True)

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    first_Bx1 = jnp.argmax(view.masked_BxA, axis=1)[:, None]
    distance_BxA = jnp.arange(view.masked_BxA.shape[1])[None, :] - first_Bx1
    cost_BxA = view.stats.entropy + self.penalty * distance_BxA
    write_BxA = select.rank(-cost_BxA, view.masked_BxA) == 0
    if self.threshold is not None:
      write_BxA |= cost_BxA < self.threshold
    return Decision(write_BxA & view.masked_BxA, view.stats.token), state
