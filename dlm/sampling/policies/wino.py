"""Many tokens in, and out again those that the others do not bear out."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Wino(Policy):
  """WINO (2507.18578): accept freely, then remask tokens that a shadow block does not confirm.

  As its code does it. Writes every token with confidence > `threshold`, at least the surest and at
  most 0.7 of what is masked, within [5, 20]. If it writes more than one, tokens that earlier
  forwards wrote in the block are masked again where the model, judging them by a shadow block,
  gives them less than `back`: the least likely first, fewer than the forward before wrote.

  Args:
    threshold: the authors' 0.6, for some tasks 0.7 or 0.8.
  """

  scope = "canvas"
  judges = True  # written slots of the block answer as if they were masked: dlm.sampling.shadow
  threshold: float = 0.6
  back: float = 0.9

  def __post_init__(self):
    for name in ("threshold", "back"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"wino: {name}={getattr(self, name)} must lie in [0, 1]")

  def needs(self) -> StatSpec:
    return StatSpec(current=True)

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: tokens that the forward before wrote; at a block's start the code says 30."""
    return jnp.full(masked_BxA.shape[0], 30)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    sure_BxA = confidence(view.stats)
    above_B = (view.masked_BxA & (sure_BxA > self.threshold)).sum(-1)
    most_B = jnp.clip(view.masked_BxA.sum(-1) * 7 // 10, 5, 20)
    n_B = jnp.clip(above_B, 1, most_B)
    write_BxA = select.top(sure_BxA, view.masked_BxA, n_B)

    written_BxA = view.open_BxA & (view.tokens_BxA != view.mask_id)
    written_BxA &= view.slot_BxA >= view.start_B[:, None]
    judged_BxA = jnp.nan_to_num(jnp.exp(view.stats.current - view.stats.lse), nan=1.0)
    doubted_B = (written_BxA & (judged_BxA < self.back)).sum(-1)
    out_B = jnp.where(n_B > 1, jnp.minimum(doubted_B, state - 1), 0)
    undo_BxA = select.top(-judged_BxA, written_BxA, out_B)
    token_BxA = jnp.where(undo_BxA, view.mask_id, view.stats.token)
    return Decision(write_BxA | undo_BxA, token_BxA), write_BxA.sum(-1)
