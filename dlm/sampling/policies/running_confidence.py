"""All masks are filled at every forward, and what is held for least sure is masked again."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class RunningConfidence(Policy):
  """MDPO (2508.13148): fill all masks of the block, then mask again what was least sure.

  Its running confidence remasking. Of a block of n open slots, n (1 - i / steps), rounded down, are
  masks again after forward i: those whose confidence was lowest when they were last written, now
  or earlier. So a token stays only while enough others are doubted more.

  Args:
    steps: forwards of a block.
  """

  steps: int

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"running_confidence: steps={self.steps} must be at least 1")

  def most_forwards(self, slots: int) -> int:
    return self.steps

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: confidence of each slot when it was last written."""
    return jnp.zeros(masked_BxA.shape)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    own_BxA = view.open_BxA & ~view.later_BxA & (view.slot_BxA >= view.start_B[:, None])
    state = jnp.where(view.masked_BxA, confidence(view.stats), state)
    left_B = jnp.maximum(self.steps - 1 - view.step_B, 0)
    undo_BxA = select.top(-state, own_BxA, own_BxA.sum(-1) * left_B // self.steps)
    token_BxA = jnp.where(undo_BxA, view.mask_id, view.stats.token)
    return Decision(view.masked_BxA ^ undo_BxA, token_BxA), state
