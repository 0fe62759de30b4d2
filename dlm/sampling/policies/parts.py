"""A block is written part after part."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.policy import Wrapper
from dlm.types import Array, Decision, State, View


@dataclasses.dataclass(frozen=True)
class Parts(Wrapper):
  """Fast-dLLM v2 (2509.26328): write a block part after part; `inner` decides within each.

  Parts are cut from the block's first slot; the leftmost with a masked slot is next. What stands
  behind it counts as masked for later.

  Args:
    inner: decides; the authors' is threshold 0.9.
    size: slots of a part; 8 of a block's 32 in the paper.
  """

  size: int = 8

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f"parts: size={self.size} must be at least 1")
    super().__post_init__()
    inner = self.inner
    self.refuse(inner.scope != "block", "sees all slots, of which a part would hide some")
    self.refuse(inner.draft_span, "drafts over its block, of which a part would hide some")
    self.refuse(inner.timed, "counts its forwards, and would end the block with its first part")

  @property
  def part(self) -> int:
    return self.size

  def decide(self, view: View, state: State, key_B: Array) -> tuple[Decision, State]:
    part_BxA = (view.slot_BxA - view.start_B[:, None]) // self.size
    first_Bx1 = jnp.argmax(view.masked_BxA, axis=1)[:, None]
    now_BxA = view.masked_BxA & (part_BxA == jnp.take_along_axis(part_BxA, first_Bx1, axis=1))
    later_BxA = view.later_BxA | (view.masked_BxA & ~now_BxA)
    return self.inner.decide(view.replace(masked_BxA=now_BxA, later_BxA=later_BxA), state, key_B)
