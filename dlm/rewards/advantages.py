"""From rewards of groups of completions to advantages: what each paper subtracts and divides by."""

import dataclasses

import numpy as np

NORMS = ("none", "zscore", "minmax")
KINDS = (
  "none", "centred", "leave_one_out", "zscore", "group", "batch", "softmax", "softmax_good", "steps"
)  # fmt: skip
SMALL, TINY = 1e-4, 1e-8


@dataclasses.dataclass(frozen=True)
class Advantages:
  """How much better a completion is than others of its prompt.

  Args:
    kind: "centred": less the group's mean (d1, SPG). "leave_one_out": less that of the others
      (coupled-GRPO, ESPO). "zscore": divided by the group's standard deviation too, that of a
      population (TraceRL); "group": that of a sample (LightningRL). "batch": by mean and deviation
      of all rows that learn (LightningRL). "softmax": softmax of the centred rewards, less that of
      their negatives, each of mean 1 in its group (wd1); "softmax_good": the first alone. "steps":
      of every forward one of its own, see `of_steps` (MDPO).
    scale: "centred" and "leave_one_out" are divided by the group's sample deviation, plus 1e-4.
    right: only groups whose share of right answers lies within these learn; (0.2, 0.8): TraceRL.
    spread: only groups whose tokens per forward differ by so much at least learn: LightningRL.
    some_right: only groups with a right answer learn: LightningRL.
  """

  kind: str = "centred"
  scale: bool = False
  right: tuple[float, float] = (0.0, 1.0)
  spread: float = 0.0
  some_right: bool = False

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"advantages.kind={self.kind!r} is unknown; known: {', '.join(KINDS)}")
    if self.scale and self.kind not in ("centred", "leave_one_out"):
      raise ValueError(f"advantages.scale=True does not go with kind={self.kind!r}")
    if not 0 <= self.right[0] <= self.right[1] <= 1:
      raise ValueError(f"advantages.right={self.right} must rise within [0, 1]")
    if self.spread < 0:
      raise ValueError(f"advantages.spread={self.spread} must not be negative")

  def kept(self, right_B: np.ndarray, speed_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    """Bool [B]: rows of groups that learn. `speed`: tokens per forward."""
    share_B = of_group(right_B.astype(np.float64), group_B, np.mean)
    kept_B = (share_B >= self.right[0]) & (share_B <= self.right[1])
    kept_B &= of_group(speed_B, group_B, np.ptp) >= self.spread
    return kept_B & (share_B > 0) if self.some_right else kept_B

  def __call__(
    self, reward_B: np.ndarray, group_B: np.ndarray, kept_B: np.ndarray | None = None
  ) -> np.ndarray:
    """Float64 [B]. `group`: rows of equal number belong together. `kept`: see there; None: all."""
    x_B = reward_B.astype(np.float64)
    if self.kind == "none":
      return x_B
    if self.kind == "steps":
      raise ValueError("advantages.kind='steps' are of every forward: see `of_steps`")
    if self.kind == "batch":
      learned_B = x_B if kept_B is None else x_B[kept_B]
      return (
        (x_B - learned_B.mean()) / (_deviation(learned_B) + TINY) if len(learned_B) else 0 * x_B
      )
    if self.kind == "zscore":
      return normalised(x_B, group_B, "zscore")
    centred_B = x_B - of_group(x_B, group_B, np.mean)
    size_B = of_group(x_B, group_B, len)
    if self.kind == "group":
      return centred_B / (of_group(x_B, group_B, _deviation) + TINY)
    if self.kind.startswith("softmax"):
      good_B, bad_B = (size_B * _softmax(sign * centred_B, group_B) for sign in (1, -1))
      return good_B if self.kind == "softmax_good" else good_B - bad_B
    if self.kind == "leave_one_out":
      centred_B = centred_B * size_B / np.maximum(size_B - 1, 1)
    return centred_B / (of_group(x_B, group_B, _deviation) + SMALL) if self.scale else centred_B


def of_steps(reward_BxT: np.ndarray, group_B: np.ndarray) -> np.ndarray:
  """MDPO (2508.13148): what each forward brought an answer, against the others of its prompt.

  That is what the reward gained by it (the first forward: on 0), plus the mean reward of the
  answers that followed, in the last step its own; less the group's mean at that step, and divided
  by the group's sample deviation plus 1e-4.

  Args:
    reward_BxT: of the answers as the model predicted them at each forward.

  Returns:
    Float64 [B, T].
  """
  x_BxT = reward_BxT.astype(np.float64)
  steps = x_BxT.shape[1]
  after_BxT = x_BxT[:, ::-1].cumsum(1)[:, ::-1] - x_BxT
  later_BxT = after_BxT / np.maximum(np.arange(steps)[::-1], 1)[None]
  later_BxT[:, -1] = x_BxT[:, -1]
  gain_BxT = np.diff(x_BxT, axis=1, prepend=0) + later_BxT
  out_BxT = np.zeros_like(gain_BxT)
  for t, gain_B in enumerate(gain_BxT.T):
    deviation_B = of_group(gain_B, group_B, _deviation)
    out_BxT[:, t] = (gain_B - of_group(gain_B, group_B, np.mean)) / (deviation_B + SMALL)
  return out_BxT


def telling_steps(advantage_BxT: np.ndarray, group_B: np.ndarray, count: int) -> np.ndarray:
  """The `count` steps of each group whose advantages are largest, [B, count], largest first."""
  size_BxT = np.stack([of_group(np.abs(a_B), group_B, np.sum) for a_B in advantage_BxT.T], axis=1)
  return np.argsort(-size_BxT, axis=1, kind="stable")[:, :count]


def total(scores_BxK: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
  """The weighted sum of several rewards; a score that is missing, NaN, counts as 0."""
  return np.nan_to_num(scores_BxK.astype(np.float64)) @ np.asarray(weights, np.float64)


def normalised(x_B: np.ndarray, group_B: np.ndarray, norm: str) -> np.ndarray:
  """One reward within each group, before rewards are added: so that none drowns another.

  "zscore": 0 where all are equal; "minmax": to [0, 1], 1/2 where all are equal.
  """
  if norm == "none":
    return x_B
  if norm == "zscore":
    gap_B, size_B = x_B - of_group(x_B, group_B, np.mean), of_group(x_B, group_B, np.std)
  else:
    gap_B, size_B = x_B - of_group(x_B, group_B, np.min), of_group(x_B, group_B, np.ptp)
  equal = 0.0 if norm == "zscore" else 0.5
  return np.where(size_B > 0, gap_B / np.where(size_B > 0, size_B, 1), equal)


def of_group(x_B: np.ndarray, group_B: np.ndarray, of) -> np.ndarray:
  """A number of each row's group, at every row."""
  out_B = np.zeros(len(x_B))
  for group in np.unique(group_B):
    out_B[group_B == group] = of(x_B[group_B == group])
  return out_B


def _deviation(x: np.ndarray) -> float:
  return float(x.std(ddof=1)) if len(x) > 1 else 0.0


def _softmax(x_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
  e_B = np.exp(x_B - of_group(x_B, group_B, np.max))
  return e_B / of_group(e_B, group_B, np.sum)
