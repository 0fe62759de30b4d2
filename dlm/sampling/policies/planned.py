"""A random order that is known before it is followed."""

import dataclasses

import jax.numpy as jnp
from flax import struct

from dlm.sampling import chance, select
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, View


@struct.dataclass
class Order:
  """What a row has yet to write in its block."""

  count_B: Array  # slots the block had to write when the row entered it
  place_BxL: Array  # 0, 1, ...: a slot's place in the order; -1: not in it, or it had its turn


@dataclasses.dataclass(frozen=True)
class Planned(Policy):
  """dKV-Cache-Greedy (2505.15781): write in a random order that is drawn once, then followed.

  At a block's first forward (3.4): whoever knows what comes next need compute little else.
  In law it is `fixed` with order="random". Set one of `k`, `steps`; `exact_steps` is as there. A
  slot has one turn, even where [MASK] is predicted and it stays masked, as in the authors' code.
  """

  scope = "canvas"
  foresees = True
  k: int = 0
  steps: int = 0
  exact_steps: bool = False

  def __post_init__(self):
    if (self.k > 0) == (self.steps > 0) or min(self.k, self.steps) < 0:
      raise ValueError(f"planned: set one of k={self.k} and steps={self.steps}, positive")
    if self.exact_steps and not self.steps:
      raise ValueError("planned: exact_steps=True needs steps")

  def most_forwards(self, slots: int) -> int:
    return max(slots, self.steps)

  def enter(self, masked_BxL: Array, state: Order | None) -> Order:
    """The order is drawn with the block's first decision; until then all places are 0."""
    return Order(masked_BxL.sum(-1), jnp.where(masked_BxL, 0, -1))

  def upcoming(self, state: Order, step_B: Array) -> Array:
    """Int [B, L]: 1, 2, ... for slots that the next forward writes, in order; 0 for all others.

    Nothing is known at a block's first forward.
    """
    due_BxL = self._due(state, step_B) & (step_B > 0)[:, None]
    return jnp.where(due_BxL, state.place_BxL + 1, 0)

  def decide(self, view: View, state: Order, key_B: Array) -> tuple[Decision, Order]:
    planned_BxL = state.place_BxL >= 0
    drawn_BxL = select.rank(chance.uniform(key_B, view), planned_BxL)
    first_B = view.step_B == 0
    state = state.replace(
      place_BxL=jnp.where(first_B[:, None] & planned_BxL, drawn_BxL, state.place_BxL)
    )
    turn_BxL = self._due(state, view.step_B) & view.scored_BxA
    state = state.replace(place_BxL=jnp.where(turn_BxL, -1, state.place_BxL))
    leave_B, stay_B = ~(state.place_BxL >= 0).any(-1), None
    if self.exact_steps:
      leave_B = view.step_B + 1 >= self.steps
      stay_B = ~leave_B
    write_BxL = turn_BxL & view.masked_BxA
    return Decision(write_BxL, view.stats.token, stay_B=stay_B, leave_B=leave_B), state

  def _due(self, state: Order, step_B: Array) -> Array:
    """Bool [B, L]: slots whose turn has come by the block's forward `step`."""
    done_B = self.k * (step_B + 1)
    if self.steps:  # split as `fixed` does: the first forwards write one more
      done_B = state.count_B // self.steps * (step_B + 1)
      done_B += jnp.minimum(step_B + 1, state.count_B % self.steps)
    return (state.place_BxL >= 0) & (state.place_BxL < done_B[:, None])
