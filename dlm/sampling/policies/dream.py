"""Dream's sampler: equal steps in time, the surest of the masked tokens in each."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dlm.sampling import chance, select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence, margin
from dlm.types import Array, Decision, StatSpec, TokenStats, View

ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")


@dataclasses.dataclass(frozen=True)
class Dream(Policy):
  """Dream (2508.15487): write a share of the masked tokens at each of equal steps in time.

  As the authors' code samples. Time falls from 1 to `eps` in `steps` equal steps, a forward each,
  over a block. The step from t to s writes the share 1 - s/t of the tokens that are still masked,
  rounded down, and the last step all of them: one token a step means none in the first and two in
  the last.

  Args:
    steps: forwards per block.
    alg: which tokens. "origin": each by a coin of that share. The others take the best by the
      candidate's probability ("maskgit_plus"), by top-1 minus top-2 probability ("topk_margin") or
      by negative entropy ("entropy"), all of the distribution that candidates are drawn from.
    alg_temp: above 0 the best are not taken but drawn without replacement, from the softmax of
      these scores / alg_temp.
    eps: time after the last step.
    exact_steps: a block takes all its steps, as in the authors' code, though "origin" may have
      written everything before.
  """

  timed = True
  steps: int = 512
  alg: str = "entropy"
  alg_temp: float = 0.0
  eps: float = 1e-3
  exact_steps: bool = False

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"dream: steps={self.steps} must be at least 1")
    if self.alg not in ALGORITHMS:
      raise ValueError(f"dream: alg={self.alg!r} is not one of {', '.join(ALGORITHMS)}")
    if self.alg_temp < 0 or (self.alg_temp and self.alg == "origin"):
      raise ValueError(
        f"dream: alg_temp={self.alg_temp} must not be negative, and 0 with alg='origin'"
      )
    if not 0 <= self.eps < 1:
      raise ValueError(f"dream: eps={self.eps} must lie in [0, 1)")

  def most_forwards(self, slots: int) -> int:
    return max(slots, self.steps)

  def needs(self) -> StatSpec:
    return StatSpec(
      confidence="shaped",
      top_p_of="all",
      top2=self.alg == "topk_margin",
      entropy=self.alg == "entropy",
    )

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    share_B = jnp.asarray(shares(self.steps, self.eps))[jnp.minimum(view.step_B, self.steps)]
    if self.alg == "origin":
      write_BxA = view.masked_BxA & (chance.uniform(key_B, view) < share_B[:, None])
    else:
      quota_B = (view.masked_BxA.sum(-1) * share_B).astype(jnp.int32)  # rounds down
      score_BxA = self._score(view.stats)
      if self.alg_temp:
        score_BxA = score_BxA / self.alg_temp + chance.gumbel(key_B, view)
      write_BxA = select.top(score_BxA, view.masked_BxA, quota_B)
    last_B = view.step_B + 1 >= self.steps
    stay_B = ~last_B if self.exact_steps else None
    return Decision(write_BxA, view.stats.token, stay_B=stay_B, leave_B=last_B), state

  def _score(self, stats: TokenStats) -> Array:
    if self.alg == "topk_margin":
      return margin(stats)
    if self.alg == "entropy":
      return -stats.entropy
    return confidence(stats)


def shares(steps: int, eps: float) -> np.ndarray:
  """[steps + 1] 1 - s/t of every step, 1 in the last, 0 after it.

  To the last digit those of torch.linspace: float32, each half of the times counted from its own
  end, a time rounded once. Many quotas are close to a whole number, and are then decided by it.
  """
  i, end = np.arange(steps + 1), np.float32(eps)
  step = np.float64((end - np.float32(1)) / np.float32(steps))
  times = np.where(i < (steps + 1) // 2, 1 + step * i, end - step * (steps - i)).astype(np.float32)
  share = np.zeros(steps + 1, np.float32)
  share[:-1] = 1 - times[1:] / times[:-1]
  share[steps - 1] = 1
  return share
