"""Write what is sure, and replace what was written where the model has become sure otherwise."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class Edit(Policy):
  """LLaDA2.1 (2602.08676): write what is sure, and replace tokens where another became sure.

  Token editing (2, eq. 1-3), as its code does it. Every forward writes masked slots with confidence
  > `threshold`, at least the `least` best, and replaces written ones whose candidate is another
  token with confidence > `edit`. A block ends with the first forward that finds no mask and
  replaces nothing; commit="free" takes its keys from it.

  Args:
    threshold, edit: 0.95 and 0.9 in the code; 0.5 and 0.0 are quoted as its speed mode, 0.7 and 0.5
      as its quality mode. edit=0 replaces whenever the candidate changed, 1 never.
    most: forwards spent on a block in which nothing is masked, at most.
  """

  threshold: float = 0.95
  edit: float = 0.9
  most: int = 16
  least: int = 1

  def __post_init__(self):
    for name in ("threshold", "edit"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"edit: {name}={getattr(self, name)} must lie in [0, 1]")
    if self.most < 0 or self.least < 1:
      raise ValueError(f"edit: most={self.most} must be at least 0, least={self.least} at least 1")

  def most_forwards(self, slots: int) -> int:
    return slots + self.most

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: forwards spent on a block in which nothing is masked."""
    return jnp.zeros(masked_BxA.shape[0], jnp.int32)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    sure_BxA, token_BxA = confidence(view.stats), view.stats.token
    least_B = jnp.full_like(state, self.least)
    write_BxA = select.above_or_top(sure_BxA, view.masked_BxA, self.threshold, least_B)

    written_BxA = view.open_BxA & view.scored_BxA & (view.tokens_BxA != view.mask_id)
    written_BxA &= view.slot_BxA >= view.start_B[:, None]
    edit_BxA = written_BxA & (token_BxA != view.tokens_BxA) & (sure_BxA > self.edit)
    clean_B = ~view.masked_BxA.any(-1)
    state = state + clean_B
    after_BxA = jnp.where(write_BxA | edit_BxA, token_BxA, view.tokens_BxA)
    full_B = ~((view.masked_BxA | edit_BxA) & (after_BxA == view.mask_id)).any(-1)
    ends_B = (clean_B & ~edit_BxA.any(-1)) | (full_B & (state >= self.most))
    return Decision(write_BxA | edit_BxA, token_BxA, stay_B=~ends_B), state
