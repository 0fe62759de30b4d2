"""As many tokens as their joint error allows."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Factor:
  """Writes the n surest tokens for the largest n with (n + 1)(1 - c_n) < `factor`; at least one.

  Fast-dLLM, arXiv 2505.22618, 3.3 (the condition under which parallel greedy choice equals the
  sequential one, Theorem 1). This is the paper's rule: the authors' code takes one token more when
  the first rank to fail is the last.
  """

  scope = "block"
  factor: float = 1.0

  def __post_init__(self):
    if self.factor <= 0:
      raise ValueError(f"factor: factor={self.factor} must be positive")

  def needs(self) -> StatSpec:
    return StatSpec()

  def enter(self, masked_BxA: Array, state: tuple[()] | None) -> tuple[()]:
    return ()

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    confidence_BxA = confidence(view.stats)
    rank_BxA = select.rank(confidence_BxA, view.masked_BxA)
    fits_BxA = view.masked_BxA & ((rank_BxA + 2) * (1 - confidence_BxA) < self.factor)
    n_B = jnp.where(fits_BxA, rank_BxA + 1, 1).max(-1)
    write_BxA = view.masked_BxA & (rank_BxA < n_B[:, None])
    return Decision(write_BxA, view.stats.token), state
