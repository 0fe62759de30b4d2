"""A block is written part after part."""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array, Decision, Policy, State, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Parts:
  """Fast-dLLM v2's sub-blocks (arXiv 2509.26328): `inner` sees one part of the block at a time.

  Parts are cut from the block's first slot; the leftmost with a masked slot is next. What stands
  behind it counts as masked for later.

  Args:
    inner: decides; the authors' is threshold 0.9.
    size: slots of a part; 8 of a block's 32 in the paper.
  """

  scope = "block"
  inner: Policy
  size: int = 8

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f"parts: size={self.size} must be at least 1")
    if self.inner.scope != "block" or hasattr(self.inner, "reach"):
      raise ValueError(f"parts: inner={self.inner} must be a policy of one block")

  def needs(self) -> StatSpec:
    return self.inner.needs()

  def enter(self, masked_BxA: Array, state: State | None) -> State:
    return self.inner.enter(masked_BxA, state)

  def decide(self, view: View, state: State, key_B: Array) -> tuple[Decision, State]:
    part_A = jnp.arange(view.masked_BxA.shape[1]) // self.size
    first_B = part_A[jnp.argmax(view.masked_BxA, axis=1)]
    now_BxA = view.masked_BxA & (part_A[None, :] == first_B[:, None])
    later_BxA = view.later_BxA | (view.masked_BxA & ~now_BxA)
    return self.inner.decide(view.replace(masked_BxA=now_BxA, later_BxA=later_BxA), state, key_B)
