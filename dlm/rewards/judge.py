"""The `rewards` table of a run: what completions are worth, and what they learn from that."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlm.rewards.advantages import NORMS, Advantages, normalised, total
from dlm.rewards.written import Written


@dataclasses.dataclass(frozen=True)
class Rewarded:
  """Of each row, [B] each."""

  reward: np.ndarray  # the weighted sum, of rewards that were normalised where that is asked for
  right: np.ndarray
  speed: np.ndarray  # tokens per forward


@dataclasses.dataclass(frozen=True)
class Judged:
  """Of each row, [B] each, float64 or bool."""

  reward: np.ndarray
  advantage: np.ndarray
  right: np.ndarray
  kept: np.ndarray  # False: of a group that nothing is learned from


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The `rewards` table: completions in groups, judged, and learned from.

  Args:
    of: each (name, weight) or (name, weight, norm), see `dlm.rewards.REWARDS`; norm: "none",
      "zscore" or "minmax", of that reward within its group before it is weighed. An answer is right
      where the first is at least 1.
    group: completions of a prompt; they stand side by side in a batch.
    updates: on the same completions, each with masks of its own.
    margin: completions of at least `rollout.max_new_tokens` less this many tokens are wrong, and
      their first reward is 0 (TraceRL: 5); None: no such rule.
    advantages: see `Advantages`.
  """

  of: tuple[tuple, ...]
  group: int = 8
  updates: int = 1
  margin: int | None = None
  advantages: Advantages = dataclasses.field(default_factory=Advantages)

  def __post_init__(self):
    if not self.of:
      raise ValueError("rewards.of must name a reward")
    for each in self.of:
      match each:
        case [str(), int() | float()]:
          pass
        case [str(), int() | float(), norm]:
          if norm not in NORMS:
            raise ValueError(f"rewards.of: {norm!r} is unknown; known: {', '.join(NORMS)}")
        case _:
          raise ValueError(f"rewards.of={each!r} must be (NAME, WEIGHT) or (NAME, WEIGHT, NORM)")
    for field in ("group", "updates"):
      if getattr(self, field) < 1:
        raise ValueError(f"rewards.{field}={getattr(self, field)} must be at least 1")
    if self.margin is not None and self.margin < 0:
      raise ValueError(f"rewards.margin={self.margin} must not be negative (None: no such rule)")

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(name for name, *_ in self.of)

  def judged(self, scores_BxK: np.ndarray, rows: Sequence[Written], room: int) -> Judged:
    """`scores`: of each row by each reward, NaN where it failed. `room`: tokens of an answer."""
    found, group_B = self.rewarded(scores_BxK, rows, room), np.arange(len(rows)) // self.group
    kept_B = self.advantages.kept(found.right, found.speed, group_B)
    advantage_B = self.advantages(found.reward, group_B, kept_B)
    return Judged(found.reward, advantage_B, found.right, kept_B)

  def rewarded(self, scores_BxK: np.ndarray, rows: Sequence[Written], room: int) -> Rewarded:
    """Before rows are compared; arguments as of `judged`."""
    scores_BxK = np.array(scores_BxK, np.float64)
    tokens_B = np.array([each.tokens for each in rows])
    if self.margin is not None:
      late_B = tokens_B >= room - self.margin
      scores_BxK[late_B, 0] = np.minimum(scores_BxK[late_B, 0], 0)
    right_B = scores_BxK[:, 0] >= 1
    speed_B = np.array([each.tokens_per_forward for each in rows])
    group_B = np.arange(len(rows)) // self.group
    columns = [
      normalised(np.nan_to_num(scores_B), group_B, *(norm or ("none",)))
      for scores_B, (_, _, *norm) in zip(scores_BxK.T, self.of, strict=True)
    ]
    reward_B = total(np.stack(columns, axis=1), tuple(weight for _, weight, *_ in self.of))
    return Rewarded(reward_B, right_B, speed_B)
