"""Early commit: when the answer is sure, everything is written at once."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.policy import Wrapper
from dlm.types import Array, Decision, State, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Prophet(Wrapper):
  """Prophet (2508.19982): write all at once as soon as the answer is sure; till then, `inner`.

  The answer is `answer_length` slots from `answer_start` on, counted from the first open slot;
  negative: before it, and only slots from the first open one on count. It is sure when the mean gap
  between its two best logits, written or not, reaches a threshold that falls with the share of the
  `steps` forwards that are spent: `early` below 0.33, `mid` below 0.67, then `late`. All masked
  slots of the row are then written from this forward. An answer without a slot is never sure.

  Args:
    steps: forwards that the row would take without it, over all its blocks.
    answer_length: 5 in the authors' code.
  """

  scope = "canvas"
  steps: int
  answer_start: int
  answer_length: int = 5
  early: float = 7.5
  mid: float = 5.0
  late: float = 2.5

  def __post_init__(self):
    super().__post_init__()
    for field in ("steps", "answer_length"):
      if getattr(self, field) < 1:
        raise ValueError(f"prophet: {field}={getattr(self, field)} must be at least 1")

  def needs(self) -> StatSpec:
    return dataclasses.replace(self.inner.needs(), top2=True)

  def decide(self, view: View, state: State, key_B: Array) -> tuple[Decision, State]:
    decision, state = self.inner.decide(view, state, key_B)
    sure_B = self.gap(view) >= self.threshold(view.turn_B)
    rest_BxA = (view.masked_BxA | view.later_BxA) & view.scored_BxA
    stop_B = sure_B if decision.stop_B is None else decision.stop_B | sure_B
    return decision.replace(
      write_BxA=jnp.where(sure_B[:, None], rest_BxA, decision.write_BxA),
      token_BxA=jnp.where(sure_B[:, None], view.stats.token, decision.token_BxA),
      stop_B=stop_B,
    ), state

  def gap(self, view: View) -> Array:
    """Mean gap of the answer's logits, [B]; -inf where no slot of it was computed."""
    first_B = jnp.argmax(view.open_BxA, axis=-1)
    offset_BxA = view.slot_BxA - first_B[:, None]
    begin, end = max(self.answer_start, 0), self.answer_start + self.answer_length
    answer_BxA = (offset_BxA >= begin) & (offset_BxA < end) & view.scored_BxA & view.inside_BxA
    gap_BxA = jnp.where(answer_BxA, view.stats.top1 - view.stats.top2, 0)
    n_B = answer_BxA.sum(-1)
    return jnp.where(n_B > 0, gap_BxA.sum(-1) / jnp.maximum(n_B, 1), -jnp.inf)

  def threshold(self, turn_B: Array) -> Array:
    progress_B = (turn_B + 1) / self.steps
    late_B = jnp.where(progress_B < 0.67, self.mid, self.late)
    return jnp.where(progress_B < 0.33, self.early, late_B)
