"""Far apart first: the surest token of every run of masks."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class Hierarchy(Policy):
  """dInfer, hierarchy (2510.08666): write the surest token of every run of adjacent masks.

  Runs so fall into ever smaller parts. With its code's thresholds: the surest of a run
  must be surer than `low`; a token surer than `threshold` is always written, and so is the surest
  of all. Equally sure tokens of a run are written together.

  Args:
    decay: `threshold` starts at 1 and falls by this with every forward of the row; 0: constant.
  """

  threshold: float = 0.9
  low: float = 0.4
  decay: float = 0.0

  def __post_init__(self):
    for field in ("threshold", "low"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(f"hierarchy: {field}={getattr(self, field)} must lie in [0, 1]")
    if self.decay < 0:
      raise ValueError(f"hierarchy: decay={self.decay} must not be negative (0: constant)")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    score_BxA = confidence(view.stats)
    best_BxA = select.rank(score_BxA, view.masked_BxA) == 0
    threshold = select.falling(self.threshold, self.decay, view.turn_B)
    sure_BxA = (_best_of_run(score_BxA, view.masked_BxA) & (score_BxA > self.low)) | best_BxA
    write_BxA = view.masked_BxA & (sure_BxA | (score_BxA > threshold))
    return Decision(write_BxA, view.stats.token), state


def _best_of_run(score_BxA: Array, masked_BxA: Array) -> Array:
  """Whether a masked position has the highest score of its run."""
  before_BxA = jnp.pad(masked_BxA[:, :-1], ((0, 0), (1, 0)))
  run_BxA = jnp.cumsum(masked_BxA & ~before_BxA, axis=1)  # 1, 2, ...; between runs: the last one's
  score_BxA = jnp.where(masked_BxA, score_BxA, -jnp.inf)
  best_BxA = jax.vmap(
    lambda score_A, run_A: jax.ops.segment_max(score_A, run_A, score_A.size + 1)[run_A]
  )(score_BxA, run_BxA)
  return masked_BxA & (score_BxA == best_BxA)
