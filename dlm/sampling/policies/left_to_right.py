"""The leftmost tokens, as an autoregressive model writes them."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class LeftToRight(Policy):
  """SDAR, sequential (2510.06303): write the `k` leftmost masked tokens at every forward.

  Theirs is k = block // steps; k=1 is autoregressive decoding.
  """

  k: int = 1

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f"left_to_right: k={self.k} must be at least 1")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    leftness_BxA = jnp.zeros(view.masked_BxA.shape)  # equal scores: ties go to the lowest slot
    write_BxA = select.top(leftness_BxA, view.masked_BxA, jnp.full_like(view.step_B, self.k))
    return Decision(write_BxA, view.stats.token), state
