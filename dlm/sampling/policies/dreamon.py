"""Infilling of a length that nobody knows: a mask becomes two, or goes."""

import dataclasses

import jax.numpy as jnp
from flax import struct

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, StatSpec, View


@struct.dataclass
class Growth:
  """How much of its room a row has used."""

  full_B: Array  # no mask may become two now
  expanded_B: Array  # masks that became two


@dataclasses.dataclass(frozen=True)
class DreamOn(Policy):
  """DreamOn (2602.01326): the model says where a hole needs another token, and where it ends.

  One token a forward, where the entropy of what is drawn from is lowest. The token `expand_id`
  makes two masks of its mask. An end token in a hole deletes its slot and all masks of the hole
  behind it. Text around holes moves as a whole and stays as it is; so `[[4]]` is a first guess.

  Args:
    expand_id: DreamOn-v0-7B's is 151667.
    most: tokens of all holes of a row together, and masks that become two: at either limit
      `expand_id` is not chosen. Theirs is 64.
    delete_rest: an end token deletes the masks behind it too (their pad_eos_to_right).
    end_ids: those of the checkpoint by default.
  """

  scope = "canvas"
  shifts = True
  expand_id: int
  most: int = 64
  delete_rest: bool = True
  end_ids: tuple[int, ...] = ()

  def __post_init__(self):
    if self.expand_id < 0:
      raise ValueError(f"dreamon: expand_id={self.expand_id} must not be negative")
    if self.most < 1:
      raise ValueError(f"dreamon: most={self.most} must be at least 1")
    if self.expand_id in self.end_ids:
      raise ValueError(f"dreamon: expand_id={self.expand_id} must be none of {self.end_ids=}")

  @property
  def spare(self) -> int:
    return self.most

  @property
  def bars(self) -> tuple[int, ...]:
    return (self.expand_id,)

  def most_forwards(self, slots: int) -> int:
    return slots + 2 * self.most

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True, confidence="shaped", top_p_of="all")

  def enter(self, masked_BxA: Array, state: Growth | None) -> Growth:
    if state is not None:
      return state
    return Growth(masked_BxA.sum(-1) >= self.most, jnp.zeros(len(masked_BxA), jnp.int32))

  def barred(self, state: Growth) -> Array:
    return state.full_B

  def decide(self, view: View, state: Growth, key_B: Array) -> tuple[Decision, Growth]:
    token_BxA = view.stats.token
    chosen_BxA = select.rank(-view.stats.entropy, view.masked_BxA) == 0
    chosen_BxA &= view.masked_BxA
    expands_BxA = chosen_BxA & (token_BxA == self.expand_id)
    ends_BxA = chosen_BxA & jnp.isin(token_BxA, jnp.array(self.end_ids, jnp.int32))
    deletes_BxA = ends_BxA
    if self.delete_rest:
      hole_BxA = jnp.cumsum(~view.open_BxA, axis=1)
      ends_in_Bx1 = jnp.where(ends_BxA, hole_BxA, -1).max(-1, keepdims=True)
      behind_BxA = (jnp.cumsum(ends_BxA, axis=1) > 0) & (hole_BxA == ends_in_Bx1)
      deletes_BxA |= behind_BxA & (view.masked_BxA | view.later_BxA)
    expanded_B = state.expanded_B + expands_BxA.sum(-1)
    length_B = view.open_BxA.sum(-1) + expands_BxA.sum(-1) - deletes_BxA.sum(-1)
    decision = Decision(
      chosen_BxA & ~expands_BxA & ~ends_BxA, token_BxA,
      insert_BxA=expands_BxA, delete_BxA=deletes_BxA,
    )  # fmt: skip
    full_B = (length_B >= self.most) | (expanded_B >= self.most)
    return decision, Growth(full_B, expanded_B)
