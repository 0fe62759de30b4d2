"""Faster as confidence grows, and back over what became doubtful."""

import dataclasses

import jax.numpy as jnp
from flax import struct

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View


@struct.dataclass
class SaberState:
  final_BxA: Array  # confidence when the slot was last written; -inf: never
  last_BxA: Array  # confidence at the last forward; -inf behind the active block


@dataclasses.dataclass(frozen=True)
class Saber(Policy):
  """Saber (2510.18165): write more as confidence grows, and mask again what became doubtful.

  As its code does it. Writes all slots surer than the mean confidence at which the earlier ones
  were written, at least `n`. Then masks again those of the written slots whose confidence fell most
  since the forward before: an eighth of what was written now, at least n // 2, always fewer than
  were written. Earlier blocks are reached too. Confidences of slots that were masked again stay in
  the mean.
  """

  scope = "canvas"
  n: int = 2

  def __post_init__(self):
    if self.n < 1:
      raise ValueError(f"saber: n={self.n} must be at least 1")

  def enter(self, masked_BxA: Array, state: SaberState | None) -> SaberState:
    if state is not None:
      return state
    shape = masked_BxA.shape
    return SaberState(jnp.full(shape, -jnp.inf), jnp.zeros(shape))

  def decide(self, view: View, state: SaberState, key_B: Array) -> tuple[Decision, SaberState]:
    # What may be looked at: slots of the row that are written, or may be now.
    seen_BxA = view.open_BxA & view.scored_BxA & ~view.later_BxA
    confidence_BxA = jnp.where(seen_BxA, confidence(view.stats), -jnp.inf)
    change_BxA = confidence_BxA - state.last_BxA
    change_BxA = jnp.where(jnp.isfinite(change_BxA), change_BxA, jnp.inf)

    known_BxA = seen_BxA & (state.final_BxA > -jnp.inf)
    sum_B = jnp.where(known_BxA, state.final_BxA, 0).sum(-1)
    threshold_B = jnp.where(known_BxA.any(-1), sum_B / jnp.maximum(known_BxA.sum(-1), 1), 1.0)
    write_BxA = view.masked_BxA & (confidence_BxA > threshold_B[:, None])
    n_B = jnp.full_like(view.step_B, self.n)
    few_B = write_BxA.sum(-1) < self.n
    best_BxA = select.top(confidence_BxA, view.masked_BxA, n_B)
    write_BxA = jnp.where(few_B[:, None], best_BxA, write_BxA)

    left_B = (view.masked_BxA & ~write_BxA).any(-1)  # the block is not finished: look back
    written_B = jnp.maximum(write_BxA.sum(-1), self.n)
    back_B = jnp.minimum(jnp.maximum(self.n // 2, -(-written_B // 8)), written_B - 1)
    standing_BxA = (seen_BxA & ~view.masked_BxA) | write_BxA
    undo_BxA = select.top(-change_BxA, standing_BxA, jnp.where(left_B, back_B, 0))
    token_BxA = jnp.where(undo_BxA, view.mask_id, view.stats.token)
    state = SaberState(
      final_BxA=jnp.where(write_BxA, confidence_BxA, state.final_BxA), last_BxA=confidence_BxA
    )
    return Decision(write_BxA | undo_BxA, token_BxA), state
