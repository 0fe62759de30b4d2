"""A fixed number of tokens per forward, best first."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import chance, select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence, margin
from dlm.types import Array, Decision, StatSpec, View

ORDERS = ("confidence", "margin", "entropy", "random")


@dataclasses.dataclass(frozen=True)
class Fixed(Policy):
  """LLaDA (2502.09992): write a fixed number of tokens a forward, the surest first.

  "Low-confidence remasking" (2.4), or another order. Set one of `k` (tokens per forward) and
  `steps` (forwards per block, split as evenly as LLaDA's code does: the first `n % steps` forwards
  write one token more). `order` is what "best" means: the candidate's probability, top-1 minus
  top-2 probability, negative entropy, or a coin. With `exact_steps` a block takes all its forwards,
  as LLaDA's code does, though none of its slots may be left to write.
  """

  k: int = 0
  steps: int = 0
  order: str = "confidence"
  exact_steps: bool = False

  def __post_init__(self):
    if (self.k > 0) == (self.steps > 0) or min(self.k, self.steps) < 0:
      raise ValueError(f"fixed: set one of k={self.k} and steps={self.steps}, positive")
    if self.exact_steps and not self.steps:
      raise ValueError("fixed: exact_steps=True needs steps")
    if self.order not in ORDERS:
      raise ValueError(f"fixed: order={self.order!r} is not one of {', '.join(ORDERS)}")

  @property
  def timed(self) -> bool:
    return self.exact_steps

  def most_forwards(self, slots: int) -> int:
    return max(slots, self.steps)

  def needs(self) -> StatSpec:
    return StatSpec(top2=self.order == "margin", entropy=self.order == "entropy")

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: how many tokens the block had to write when the row entered it."""
    return masked_BxA.sum(-1)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    quota_B = jnp.full_like(state, self.k)
    if self.steps:
      quota_B = state // self.steps + (view.step_B < state % self.steps)
    write_BxA = select.top(self._score(view, key_B), view.masked_BxA, quota_B)
    stay_B = view.step_B + 1 < self.steps if self.exact_steps else None
    leave_B = None if stay_B is None else ~stay_B
    return Decision(write_BxA, view.stats.token, stay_B=stay_B, leave_B=leave_B), state

  def _score(self, view: View, key_B: Array) -> Array:
    stats = view.stats
    if self.order == "margin":
      return margin(stats)
    if self.order == "entropy":
      return -stats.entropy
    if self.order == "random":
      return chance.uniform(key_B, view)
    return confidence(stats)
