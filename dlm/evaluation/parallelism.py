"""Accuracy against tokens per forward: what deciding several tokens at once gains and costs.

Accuracies are percent (0 to 100). `tokens` are generated ids before the first stop, `forwards` are
all network calls made for that completion, prefill and cache refreshes included.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

AUP_SLACK = 5.0  # points below the slowest setting's accuracy that still count
AUP_ALPHA = 3.0
MEAN_TASK = "mean"
PBX_LEVELS = (90, 80, 70, 60)  # percent
ORACLE = "oracle"  # the setting that `oracle` makes up


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How one problem was answered, in plain numbers: one graded completion, or the mean of several.

  `seconds` is the wall time charged to it: a batch's wall time divided by its rows, without compile
  and model load. `score` lies in [0, 1].
  """

  policy: str
  setting: str
  task: str
  score: float
  n_tokens: float
  n_forwards: float
  seconds: float

  def __post_init__(self):
    if not 0 <= self.score <= 1:
      raise ValueError(f"Outcome: score={self.score} must lie in [0, 1]")
    if self.n_tokens < 0:
      raise ValueError(f"Outcome: n_tokens={self.n_tokens} must not be negative")
    if self.n_forwards < 1:
      raise ValueError(f"Outcome: n_forwards={self.n_forwards} must be at least 1")
    if not 0 < self.seconds < math.inf:
      raise ValueError(f"Outcome: seconds={self.seconds} must be positive and finite")


@dataclasses.dataclass(frozen=True)
class CurvePoint:
  """One setting of one policy on one task: a point of its accuracy-speed curve."""

  policy: str
  setting: str
  task: str
  accuracy: float  # percent
  tpf: float  # sum of tokens / sum of forwards
  tpf_mean: float  # mean over problems of tokens / forwards
  nfe: float  # forwards per completion
  tokens_per_s: float  # sum of tokens / sum of wall seconds
  n: int  # problems

  def __post_init__(self):
    if not 0 <= self.accuracy <= 100:
      raise ValueError(f"CurvePoint: accuracy={self.accuracy} must be a percentage")
    if self.n < 1:
      raise ValueError(f"CurvePoint: n={self.n} must be at least 1")

  def interval(self) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy in percent; scores between 0 and 1 make it wider."""
    p, n, z = self.accuracy / 100, self.n, 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def tokens_per_forward(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
  """(sum / sum, mean of ratios) of (tokens, forwards) pairs; papers report one or the other."""
  pairs = list(pairs)
  if not pairs or any(forwards < 1 for _, forwards in pairs):
    raise ValueError(f"tokens_per_forward: {pairs=} must hold pairs of at least 1 forward each")
  aggregate = sum(tokens for tokens, _ in pairs) / sum(forwards for _, forwards in pairs)
  return aggregate, sum(tokens / forwards for tokens, forwards in pairs) / len(pairs)


def by_problem(outcomes: Sequence[Outcome], samples: int) -> list[Outcome]:
  """An outcome a problem, the mean of its `samples` completions, which stand side by side.

  Answers to the same problem are no independent trials: intervals and the oracle count problems.
  """
  if len(outcomes) % samples:
    raise ValueError(f"by_problem: {len(outcomes)} outcomes are no multiple of {samples=}")
  folded = []
  for start in range(0, len(outcomes), samples):
    group = outcomes[start : start + samples]
    means = {
      field: sum(getattr(each, field) for each in group) / samples
      for field in ("score", "n_tokens", "n_forwards", "seconds")
    }
    folded.append(dataclasses.replace(group[0], **means))
  return folded


def summarise(outcomes: Iterable[Outcome]) -> list[CurvePoint]:
  """One point per policy, setting and task, in order of first appearance."""
  groups: dict[tuple[str, str, str], list[Outcome]] = {}
  for outcome in outcomes:
    groups.setdefault((outcome.policy, outcome.setting, outcome.task), []).append(outcome)
  points = []
  for (policy, setting, task), group in groups.items():
    tpf, tpf_mean = tokens_per_forward((o.n_tokens, o.n_forwards) for o in group)
    points.append(
      CurvePoint(
        policy=policy,
        setting=setting,
        task=task,
        accuracy=100 * sum(o.score for o in group) / len(group),
        tpf=tpf,
        tpf_mean=tpf_mean,
        nfe=sum(o.n_forwards for o in group) / len(group),
        tokens_per_s=sum(o.n_tokens for o in group) / sum(o.seconds for o in group),
        n=len(group),
      )
    )
  return points


def mean_over_tasks(points: Sequence[CurvePoint]) -> list[CurvePoint]:
  """One point named "mean" per policy and setting: tasks weigh the same, as in ParallelBench's PBx.

  A setting that lacks a task would be compared on easier ground, so it is refused (ValueError).
  """
  tasks = {p.task for p in points}
  groups: dict[tuple[str, str], list[CurvePoint]] = {}
  for point in points:
    groups.setdefault((point.policy, point.setting), []).append(point)
  means = []
  for (policy, setting), group in groups.items():
    if sorted(p.task for p in group) != sorted(tasks):
      raise ValueError(
        f"mean_over_tasks: {policy} ({setting}) has tasks {sorted(p.task for p in group)}, "
        f"must have each of {sorted(tasks)} once"
      )
    numbers = {
      field: sum(getattr(p, field) for p in group) / len(group)
      for field in ("accuracy", "tpf", "tpf_mean", "nfe", "tokens_per_s")
    }
    n = sum(p.n for p in group)
    means.append(CurvePoint(policy=policy, setting=setting, task=MEAN_TASK, n=n, **numbers))
  return means


def pbx(
  points: Sequence[CurvePoint], levels: Sequence[float] = PBX_LEVELS
) -> dict[float, float | None]:
  """ParallelBench's PBx (2510.04767): most tokens per forward at a mean accuracy of at least x.

  By level; None where no setting reaches it. A task weighs what any other does, in accuracy and in
  tokens per forward, for which the authors also count what stands behind the end of an answer.
  """
  means = mean_over_tasks(points)
  return {
    level: max((p.tpf for p in means if p.accuracy >= level), default=None) for level in levels
  }


def oracle(outcomes: Iterable[Outcome]) -> list[CurvePoint]:
  """The setting that suits each problem best, had one known it: a point a policy and task.

  It is the fastest of those that score highest. How far a policy's fixed settings lie below it is
  what choosing by the problem could gain (2510.04767). A problem is known by its place among the
  outcomes of its setting; ValueError where settings have unequally many.
  """
  groups: dict[tuple[str, str], dict[str, list[Outcome]]] = {}
  for outcome in outcomes:
    settings = groups.setdefault((outcome.policy, outcome.task), {})
    settings.setdefault(outcome.setting, []).append(outcome)
  best = []
  for (policy, task), settings in groups.items():
    sizes = {setting: len(group) for setting, group in settings.items()}
    if len({*sizes.values()}) > 1:
      raise ValueError(
        f"oracle: settings of {policy} have unequally many problems of {task}: {sizes}"
      )
    for tried in zip(*settings.values(), strict=True):
      chosen = max(tried, key=lambda o: (o.score, o.n_tokens / o.n_forwards))
      best.append(dataclasses.replace(chosen, setting=ORACLE))
  return summarise(best)


def one_at_a_time(points: Sequence[CurvePoint]) -> CurvePoint:
  """The reference: most accurate setting of at most one token per forward, else the slowest one."""
  if not points:
    raise ValueError("one_at_a_time: points must not be empty")
  slowest = min(p.tpf for p in points)
  return max((p for p in points if p.tpf <= max(1.0, slowest)), key=lambda p: (p.accuracy, p.tpf))


def best_within(points: Sequence[CurvePoint], points_of_accuracy: float = 2.0) -> CurvePoint:
  """The setting of most tokens per forward that loses at most so many points to the reference."""
  floor = one_at_a_time(points).accuracy - points_of_accuracy
  return max((p for p in points if p.accuracy >= floor), key=lambda p: (p.tpf, p.accuracy))


# ---------------------------------------------------------------------------------------------
# AUP


def aup_weight(y: float, y_max: float, alpha: float = AUP_ALPHA) -> float:
  """How much an accuracy in percent counts beside the best of all methods, `y_max`."""
  return min(math.exp(-alpha * (1 - y / y_max)), 1.0)


def aup(
  points: Iterable[tuple[float, float]],
  y_max: float,
  alpha: float = AUP_ALPHA,
  slack: float = AUP_SLACK,
) -> float:
  """Accuracy under parallelism of (tokens per forward, percent) pairs. arXiv 2601.07568.

  `y_max` is the best accuracy of any method compared. The first point counts unweighted; points
  more than `slack` below it are dropped; if the fastest one is, the curve is refused (ValueError).
  """
  points = sorted(points, key=lambda point: point[0])
  if not points or points[0][0] <= 0:
    raise ValueError(
      f"aup: {points=} must hold at least one pair, with positive tokens per forward"
    )
  if y_max <= 0:
    raise ValueError(f"aup: {y_max=} must be positive")
  (rho_1, y_1), y_last = points[0], points[-1][1]
  if y_1 - y_last > slack:
    raise ValueError(f"aup: accuracy falls from {y_1} to {y_last}, must stay within {slack}")
  kept = [(rho, y * aup_weight(y, y_max, alpha)) for rho, y in points if y >= y_1 - slack]
  area = rho_1 * y_1
  for (rho_a, weighted_a), (rho_b, weighted_b) in itertools.pairwise(kept):
    area += (rho_b - rho_a) * (weighted_a + weighted_b) / 2
  return area


def aup_by_policy(points: Sequence[CurvePoint]) -> dict[str, float]:
  """AUP of every policy on one task, `y_max` over all of them.

  A sweep usually runs on past the useful speed: its end is cut where `aup` would refuse it.
  """
  tasks = {p.task for p in points}
  if len(tasks) > 1:
    raise ValueError(f"aup_by_policy: points of one task expected, got {sorted(tasks)}")
  y_max = max((p.accuracy for p in points), default=0.0)
  curves: dict[str, list[tuple[float, float]]] = {}
  for point in sorted(points, key=lambda p: p.tpf):
    curves.setdefault(point.policy, []).append((point.tpf, point.accuracy))
  result = {}
  for policy, curve in curves.items():
    while curve[0][1] - curve[-1][1] > AUP_SLACK:
      curve.pop()
    # A policy that never writes or never succeeds has no area.
    result[policy] = aup(curve, y_max) if curve[0][0] > 0 and y_max > 0 else 0.0
  return result


# ---------------------------------------------------------------------------------------------
# Why shuffle must lose: closed forms of ParallelBench, arXiv 2510.04767 section 3


def _blocks(n: int, k: int) -> list[tuple[int, int]]:
  """(items still open, items decided) of every step, k at a time; the last step may be shorter."""
  if not 1 <= k <= n:
    raise ValueError(f"shuffle: k={k} must lie in 1..{n=}")
  return [(m, min(k, m)) for m in range(n, 0, -k)]


def _surprise(p: float) -> float:
  return -p * math.log2(p) if p > 0 else 0.0


def _derangements(m: int, s: int) -> int:
  """Ways to give s of m items to s places, where place i must not get item i."""
  return sum((-1) ** i * math.comb(s, i) * math.perm(m - i, s - i) for i in range(s + 1))


def _not_identity(m: int) -> tuple[float, float]:
  """P(own item), P(another given item) at a place, while the places before it kept their order."""
  orders = max(math.factorial(m) - 1, 1)  # m = 1 has probability 0: any number will do
  return (math.factorial(m - 1) - 1) / orders, math.factorial(m - 1) / orders


def shuffle_bits(n: int, k: int, identity: bool = True) -> float:
  """KL in bits between shuffles of n items and the best sampler that decides k of them at once.

  `identity`: does the law hold the unchanged order too? All k = 1 samplers lose 0 bits.
  """
  bits = 0.0
  for m, s in _blocks(n, k):
    free = s * math.log2(m) - math.log2(math.perm(m, s))
    if identity or m == 1:
      bits += free
      continue
    own, other = _not_identity(m)
    marginals = s * (_surprise(own) + (m - 1) * _surprise(other))
    orders = math.factorial(m) - 1
    joint = _surprise((math.factorial(m - s) - 1) / orders)
    joint += (math.perm(m, s) - 1) * _surprise(math.factorial(m - s) / orders)
    kept_so_far = orders / (math.factorial(n) - 1)
    bits += kept_so_far * (marginals - joint) + (1 - kept_so_far) * free
  return bits


def shuffle_accuracy(n: int, k: int, identity: bool = True) -> float:
  """Probability that this best sampler writes a valid shuffle; without `identity` a changed one.

  It samples at temperature 1. Which places are decided first does not matter, by symmetry.
  """
  free, kept = 1.0, 0.0  # chance to end well once the order has changed, and while it has not
  for m, s in reversed(_blocks(n, k)):
    if not identity:
      own, other = _not_identity(m)
      distinct = sum(
        math.comb(s, j) * _derangements(m - j, s - j) * own**j * other ** (s - j)
        for j in range(s + 1)
      )
      kept = (distinct - own**s) * free + own**s * kept
    free *= math.perm(m, s) / m**s
  return free if identity else kept


# ---------------------------------------------------------------------------------------------


def table(points: Sequence[CurvePoint]) -> str:
  """Plain text: a line per policy and setting, "accuracy @ TPF" per task, tokens/s over all."""
  tasks = list(dict.fromkeys(p.task for p in points))
  groups: dict[tuple[str, str], dict[str, CurvePoint]] = {}
  for point in points:
    groups.setdefault((point.policy, point.setting), {})[point.task] = point
  rows = [("policy", "setting", *tasks, "tokens/s")]
  for names, by_task in groups.items():
    cells = [f"{p.accuracy:.1f} @ {p.tpf:.2f}" if (p := by_task.get(t)) else "" for t in tasks]
    speed = sum(p.tokens_per_s for p in by_task.values()) / len(by_task)
    rows.append((*names, *cells, f"{speed:.0f}"))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

  def line(row: Sequence[str]) -> str:
    names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(names + numbers)

  return "\n".join(
    [line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])]
  )
