"""At least so many tokens a forward, and all that are sure."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View

ORDERS = ("confidence", "left_to_right")


@dataclasses.dataclass(frozen=True)
class Quota(Policy):
  """SDAR (2510.06303): write all tokens that are sure, at least the forward's quota.

  Its generate.py, and the sampler of LLaDA2.0 (2512.15745). Each forward of a block has a quota,
  block / steps tokens, and one more in the first block % steps. It writes every token with
  confidence > `threshold` if those are at least as many, else the quota of best ones. threshold=1
  is SDAR's "static" rule, below 1 its "dynamic" one; LLaDA2.0's is 0.95. order="left_to_right" is
  its "sequential" rule: the leftmost masked slots, `threshold` unused. Their code may overwrite
  given tokens where the quota exceeds what is masked; here it is cut.

  Args:
    block: what the quota is a share of; the sampler's block.
    steps: forwards of a block, at most; 0: as many as it has slots, a token each.
  """

  block: int
  steps: int = 0
  threshold: float = 1.0
  order: str = "confidence"

  def __post_init__(self):
    object.__setattr__(self, "steps", self.steps or self.block)
    if not 1 <= self.steps <= self.block:
      raise ValueError(f"quota: steps={self.steps} must lie in [1, block={self.block}]")
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"quota: threshold={self.threshold} must lie in [0, 1]")
    if self.order not in ORDERS:
      raise ValueError(f"quota: order={self.order!r} is not one of {', '.join(ORDERS)}")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    extra_B = view.step_B < self.block % self.steps
    quota_B = jnp.maximum(self.block // self.steps + extra_B, 1)
    sure_BxA = confidence(view.stats)
    if self.order == "left_to_right":
      write_BxA = select.top(jnp.zeros_like(sure_BxA), view.masked_BxA, quota_B)
      return Decision(write_BxA, view.stats.token), state
    write_BxA = select.above_or_top(sure_BxA, view.masked_BxA, self.threshold, quota_B)
    return Decision(write_BxA, view.stats.token), state
