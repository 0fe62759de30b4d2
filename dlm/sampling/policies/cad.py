"""As many tokens as are sure enough, within bounds."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import chance, select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View

ORDERS = ("confidence", "entropy", "random")


@dataclasses.dataclass(frozen=True)
class Cad(Policy):
  """CD4LM (2601.02236): write all tokens that are sure enough, within a least and a most.

  Its code's confidence-adaptive decoding; the paper was not read. Writes the n best of the block, n
  the number that reach `threshold`, cut to [`least`, `most`]. End tokens may not be written while
  less than `end_after` of the row is: they are then no candidates, unless nothing else is left,
  when `least` of them are written after all.

  Args:
    order: what "best" means; with "entropy" `threshold` is one of negative entropy in nats.
    max_steps: the block's forward after so many writes all it may and ends the block; slots that
      only an end token asks for stay masked for good. 0: no bound.
    end_ids: the end tokens.
  """

  scope = "canvas"
  threshold: float = 0.95
  least: int = 1
  most: int = 32
  order: str = "confidence"
  end_after: float = 0.3
  max_steps: int = 0
  end_ids: tuple[int, ...] = ()

  def __post_init__(self):
    if self.order not in ORDERS:
      raise ValueError(f"cad: order={self.order!r} is not one of {', '.join(ORDERS)}")
    if not self.most >= 1:
      raise ValueError(f"cad: most={self.most} must be at least 1")
    if not self.least >= 1:
      raise ValueError(f"cad: least={self.least} must be at least 1")
    if not 0 <= self.end_after <= 1:
      raise ValueError(f"cad: end_after={self.end_after} must lie in [0, 1]")
    if self.max_steps < 0:
      raise ValueError(f"cad: max_steps={self.max_steps} must not be negative (0: no bound)")

  def needs(self) -> StatSpec:
    return StatSpec(entropy=self.order == "entropy")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    block_BxA = view.masked_BxA & (view.slot_BxA >= view.start_B[:, None])
    score_BxA = self._score(view, key_B)
    left_B = (view.masked_BxA | view.later_BxA).sum(-1)
    written_B = 1 - left_B / jnp.maximum(view.open_BxA.sum(-1), 1)
    ends_BxA = jnp.isin(view.stats.token, jnp.array(self.end_ids, jnp.int32))
    valid_BxA = block_BxA & ~(ends_BxA & (written_B < self.end_after)[:, None])

    n_B = jnp.clip((valid_BxA & (score_BxA >= self.threshold)).sum(-1), self.least, self.most)
    chosen_BxA = select.top(score_BxA, valid_BxA, n_B)
    # All candidates are end tokens that come too early. Equal scores: the lowest slots.
    leftmost_BxA = select.top(jnp.zeros_like(score_BxA), block_BxA, jnp.full_like(n_B, self.least))
    chosen_BxA = jnp.where(valid_BxA.any(-1)[:, None], chosen_BxA, leftmost_BxA)
    forced_B = jnp.zeros_like(view.step_B, bool)
    if self.max_steps:
      forced_B = view.step_B >= self.max_steps
      chosen_BxA = jnp.where(forced_B[:, None], valid_BxA, chosen_BxA)
    leave_B = forced_B | ~(block_BxA & ~chosen_BxA).any(-1)
    return Decision(chosen_BxA, view.stats.token, leave_B=leave_B), state

  def _score(self, view: View, key_B: Array) -> Array:
    if self.order == "entropy":
      return -view.stats.entropy
    if self.order == "random":
      return chance.uniform(key_B, view)
    return confidence(view.stats)
