"""RND1's sampler: the least certain tokens stay masked, ever fewer of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dlm.sampling import select
from dlm.sampling.policies.entropy_bounded import within_budget
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Rnd1(Policy):
  """RND1 (RadicalNumerics/RND1): keep masked the tokens of highest entropy, ever fewer of them.

  Of n masks the floor(n * (1 - k / steps)) of highest entropy are still masked after forward k, and
  none after the last. Entropies and confidences are those of the distribution that candidates are
  drawn from.

  Args:
    steps: forwards per block, at most.
    budget: nats a forward. With it, as many tokens are written as the EB-Sampler's bound allows
      (policy "entropy_bounded"), the surest first; the last forward writes all. None: off.
  """

  timed = True
  steps: int = 256
  budget: float | None = None

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"rnd1: steps={self.steps} must be at least 1")
    if self.budget is not None and not self.budget >= 0:
      raise ValueError(f"rnd1: budget={self.budget} must not be negative, or None for off")

  def most_forwards(self, slots: int) -> int:
    return max(slots, self.steps)

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True, confidence="shaped")

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: how many tokens the block had to write when the row entered it."""
    return masked_BxA.sum(-1)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    entropy_BxA, last_B = view.stats.entropy, view.step_B + 1 >= self.steps
    if self.budget is None:
      # In float32, as theirs: some products are close to a whole number.
      share_K = np.float32(1 - np.arange(1, self.steps + 1) / self.steps)
      share_B = jnp.asarray(share_K)[jnp.minimum(view.step_B, self.steps - 1)]
      stay_B = (state.astype(jnp.float32) * share_B).astype(jnp.int32)
      quota_B = jnp.maximum(view.masked_BxA.sum(-1) - stay_B, 0)
      write_BxA = select.top(-entropy_BxA, view.masked_BxA, quota_B)
    else:
      write_BxA = within_budget(entropy_BxA, confidence(view.stats), view.masked_BxA, self.budget)
      write_BxA = jnp.where(last_B[:, None], view.masked_BxA, write_BxA)
    return Decision(write_BxA, view.stats.token, leave_B=last_B), state
