"""As many tokens as their joint error allows."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View

RULES = ("paper", "code")


@dataclasses.dataclass(frozen=True)
class Factor(Policy):
  """Fast-dLLM, factor (2505.22618): write the more tokens at once, the surer the least sure is.

  The n surest, for the largest n with (n + 1)(1 - confidence of the nth) < `factor`; at least one
  (3.3, the condition under which parallel greedy choice equals the sequential one, Theorem 1). With
  rule="code" as the authors' code: n ends at the first rank that fails, and one more is written
  where that is the last rank.
  """

  factor: float = 1.0
  rule: str = "paper"

  def __post_init__(self):
    if self.factor <= 0:
      raise ValueError(f"factor: factor={self.factor} must be positive")
    if self.rule not in RULES:
      raise ValueError(f"factor: rule={self.rule!r} is not one of {', '.join(RULES)}")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    confidence_BxA = confidence(view.stats)
    rank_BxA = select.rank(confidence_BxA, view.masked_BxA)
    if self.rule == "code":
      n_B = self._code(confidence_BxA, rank_BxA, view.masked_BxA)
    else:
      fits_BxA = view.masked_BxA & ((rank_BxA + 2) * (1 - confidence_BxA) < self.factor)
      n_B = jnp.where(fits_BxA, rank_BxA + 1, 1).max(-1)
    write_BxA = view.masked_BxA & (rank_BxA < n_B[:, None])
    return Decision(write_BxA, view.stats.token), state

  def _code(self, confidence_BxA: Array, rank_BxA: Array, masked_BxA: Array) -> Array:
    fails_BxA = masked_BxA & (rank_BxA > 0)
    fails_BxA &= confidence_BxA < 1 - self.factor / (rank_BxA + 2)
    last_B = masked_BxA.sum(-1) - 1
    first_B = jnp.minimum(jnp.where(fails_BxA, rank_BxA, last_B[:, None]).min(-1), last_B)
    return jnp.where((first_B == 0) | (first_B == last_B), first_B + 1, first_B)
