"""Fast-dLLM's threshold for Dream: sure tokens, within a budget that grows by the step."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class DreamThreshold(Policy):
  """Fast-dLLM for Dream (2505.22618): write every token that is sure, at least the surest.

  Those with confidence >= `threshold` (3.3), as its code runs it for Dream: confidences are those
  of the distribution that candidates are drawn from (tempered, cut by top-k and top-p).

  With `steps` a block has a budget, too: its tokens split evenly over that many steps (the authors
  ask for a whole number a step). A step may write what the steps so far have left over; after the
  last of them, all. steps=0 has no budget, as in the authors' versions with a cache.
  """

  threshold: float = 0.9
  steps: int = 0

  def __post_init__(self):
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"dream_threshold: threshold={self.threshold} must lie in [0, 1]")
    if self.steps < 0:
      raise ValueError(f"dream_threshold: steps={self.steps} must not be negative (0: no budget)")

  @property
  def timed(self) -> bool:
    return self.steps > 0

  def most_forwards(self, slots: int) -> int:
    return max(slots, self.steps)

  def needs(self) -> StatSpec:
    return StatSpec(confidence="shaped", top_p_of="all")

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: how many tokens the block had to write when the row entered it."""
    return masked_BxA.sum(-1)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    score_BxA, allowed_BxA, leave_B = confidence(view.stats), view.masked_BxA, None
    if self.steps:
      allowed_BxA = select.top(score_BxA, view.masked_BxA, self._budget(view, state))
    write_BxA = select.at_least(score_BxA, allowed_BxA, self.threshold)
    if self.steps:  # a row whose last tokens are predicted to be [MASK] ends, too
      leave_B = (view.step_B + 1 >= self.steps) & (write_BxA == view.masked_BxA).all(-1)
    return Decision(write_BxA, view.stats.token, leave_B=leave_B), state

  def _budget(self, view: View, entry_B: Array) -> Array:
    """Tokens that the steps up to this one may write, less those that were written."""
    spent_B = jnp.minimum(view.step_B + 1, self.steps)
    each_B, more_B = entry_B // self.steps, entry_B % self.steps
    written_B = entry_B - view.masked_BxA.sum(-1)
    return each_B * spent_B + jnp.minimum(spent_B, more_B) - written_B
