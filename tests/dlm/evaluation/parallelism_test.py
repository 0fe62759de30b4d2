"""The closed forms of tasks that depend on themselves, and AUP as d3LLM's authors compute it."""

import itertools
import math

import pytest

from dlm.evaluation import parallelism
from dlm.evaluation.parallelism import CurvePoint, Outcome


def point(policy="p", setting="s", task="t", accuracy=50.0, tpf=1.0, n=10) -> CurvePoint:
  return CurvePoint(
    policy, setting, task, accuracy, tpf, tpf_mean=tpf, nfe=8.0, tokens_per_s=100.0, n=n
  )


@pytest.mark.parametrize(
  "n, k, bits, accuracy",
  [
    (3, 2, 0.584963, 0.666667),
    (3, 3, 2.169925, 0.222222),
    (4, 2, 1.415037, 0.375),
    (4, 3, 1.415037, 0.375),
    (4, 4, 3.415037, 0.09375),
    (5, 2, 0.906891, 0.533333),
    (5, 3, 2.058894, 0.24),
    (5, 4, 2.380822, 0.192),
    (5, 5, 4.702750, 0.0384),
    (6, 2, 1.678072, 0.3125),
    (6, 3, 3.017922, 0.123457),
    (6, 4, 2.847997, 0.138889),
    (6, 5, 3.432959, 0.092593),
    (6, 6, 6.017922, 0.015432),
  ],
)
def test_shuffle_matches_the_closed_forms(n, k, bits, accuracy):
  assert parallelism.shuffle_bits(n, k) == pytest.approx(bits, abs=1e-6)
  assert parallelism.shuffle_accuracy(n, k) == pytest.approx(accuracy, abs=1e-6)
  assert parallelism.shuffle_accuracy(n, k) == pytest.approx(2 ** -parallelism.shuffle_bits(n, k))


@pytest.mark.parametrize(
  "n, k, bits, accuracy",
  [
    (3, 2, 0.721928, 0.64),
    (3, 3, 2.243856, 0.224),
    (4, 2, 1.381043, 0.398866),
    (4, 3, 1.463781, 0.365415),
    (4, 4, 3.459561, 0.091852),
    (5, 2, 0.913255, 0.532347),
    (5, 3, 2.053543, 0.243623),
    (5, 4, 2.392073, 0.190625),
    (5, 5, 4.713795, 0.038137),
  ],
)
def test_shuffle_without_the_unchanged_order(n, k, bits, accuracy):
  assert parallelism.shuffle_bits(n, k, identity=False) == pytest.approx(bits, abs=1e-6)
  assert parallelism.shuffle_accuracy(n, k, identity=False) == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_one_item_at_a_time_loses_nothing(n, identity):
  assert parallelism.shuffle_bits(n, 1, identity) == pytest.approx(0, abs=1e-9)
  assert parallelism.shuffle_accuracy(n, 1, identity) == pytest.approx(1)


def test_shuffle_by_enumeration_of_the_ideal_sampler():
  n, k = 5, 2
  orders = [order for order in itertools.permutations(range(n)) if order != tuple(range(n))]

  def chance(order):
    p = 1.0
    for start in range(0, n, k):
      seen = [o for o in orders if o[:start] == order[:start]]
      for place in range(start, min(start + k, n)):
        p *= sum(o[place] == order[place] for o in seen) / len(seen)
    return p

  chances = [chance(order) for order in orders]
  assert parallelism.shuffle_accuracy(n, k, identity=False) == pytest.approx(sum(chances))
  kl = sum(math.log2(1 / (len(orders) * p)) for p in chances) / len(orders)
  assert parallelism.shuffle_bits(n, k, identity=False) == pytest.approx(kl)


@pytest.mark.parametrize("k", [0, 5])
def test_shuffle_rejects_impossible_steps(k):
  with pytest.raises(ValueError, match=f"k={k} must lie in"):
    parallelism.shuffle_bits(4, k)


@pytest.mark.parametrize(
  "points, y_max, expected",
  [
    ([(1, 80), (2, 79), (4, 76)], 80, 299.552345),
    ([(1, 80), (2, 74), (4, 76)], 80, 298.120709),
    ([(4, 76), (1, 80), (2, 85)], 80, 312.913806),
    ([(1, 50)], 80, 50),
    ([(1, 74.02), (9.11, 73.09)], 74.98, 637.65),
  ],
)
def test_aup_vectors(points, y_max, expected):
  assert parallelism.aup(points, y_max) == pytest.approx(expected, abs=5e-3)


def test_aup_counts_a_drop_of_exactly_five_and_refuses_more():
  straight = parallelism.aup([(1, 80), (4, 75)], 80)
  assert parallelism.aup([(1, 80), (2, 75), (4, 75)], 80) < straight
  assert parallelism.aup([(1, 80), (2, 74.9), (4, 75)], 80) == straight
  with pytest.raises(ValueError, match="must stay within 5"):
    parallelism.aup([(1, 80), (4, 74.9)], 80)
  with pytest.raises(ValueError, match="at least one pair"):
    parallelism.aup([], 80)


def test_aup_by_policy_cuts_the_useless_end_and_shares_y_max():
  points = [
    point("a", accuracy=80, tpf=1),
    point("a", accuracy=10, tpf=8),
    point("a", accuracy=76, tpf=4),
    point("b", accuracy=90, tpf=1),
    point("mute", accuracy=0, tpf=0),
  ]
  assert parallelism.aup_by_policy(points) == {
    "a": parallelism.aup([(1, 80), (4, 76)], 90),
    "b": 90,
    "mute": 0,
  }
  with pytest.raises(ValueError, match="one task"):
    parallelism.aup_by_policy([*points, point(task="other")])


def test_summarise_gives_both_averages():
  outcomes = [
    Outcome("p", "0.9", "copy", score=1, n_tokens=8, n_forwards=2, seconds=0.5),
    Outcome("p", "0.9", "sort", score=1, n_tokens=1, n_forwards=1, seconds=1),
    Outcome("p", "0.9", "copy", score=0, n_tokens=8, n_forwards=8, seconds=1.5),
  ]
  copy, sort = parallelism.summarise(outcomes)
  assert (copy.task, sort.task) == ("copy", "sort")
  assert copy == CurvePoint(
    "p", "0.9", "copy", accuracy=50, tpf=1.6, tpf_mean=2.5, nfe=5, tokens_per_s=8, n=2
  )


def test_mean_weighs_tasks_equally_and_refuses_a_missing_task():
  easy, hard = point(task="copy", accuracy=100, tpf=4, n=30), point(task="shuffle", accuracy=0)
  (mean,) = parallelism.mean_over_tasks([easy, hard])
  assert (mean.task, mean.accuracy, mean.tpf, mean.n) == ("mean", 50, 2.5, 40)
  with pytest.raises(ValueError, match=r"other \(s\) has tasks \['copy'\]"):
    parallelism.mean_over_tasks([easy, hard, point("other", task="copy")])


def test_best_within_two_points_of_one_at_a_time():
  points = [
    point(setting="slow", accuracy=90, tpf=0.9),
    point(setting="worse", accuracy=80, tpf=0.8),
    point(setting="good", accuracy=88, tpf=3),
    point(setting="fast", accuracy=87.9, tpf=9),
  ]
  assert parallelism.one_at_a_time(points).setting == "slow"
  assert parallelism.best_within(points).setting == "good"
  assert parallelism.best_within(points, 3).setting == "fast"
  assert parallelism.one_at_a_time(points[2:]).setting == "good"  # nothing slower was run


def test_interval_covers_without_leaving_the_scale():
  low, high = point(accuracy=100, n=100).interval()
  assert low == pytest.approx(96.30, abs=0.01) and high == 100
  low, high = point(accuracy=50, n=100).interval()
  assert (low, high) == (pytest.approx(40.38, abs=0.01), pytest.approx(59.62, abs=0.01))


def test_table_has_a_line_per_setting_and_a_column_per_task():
  points = [
    point("threshold", "0.9", "copy", accuracy=97.25, tpf=3.456),
    point("threshold", "0.9", "sort", accuracy=50, tpf=1),
    point("factor", "1.0", "sort", accuracy=60, tpf=2),
  ]
  head, _, *lines = [" ".join(line.split()) for line in parallelism.table(points).split("\n")]
  assert head == "policy setting copy sort tokens/s"
  assert lines == ["threshold 0.9 97.2 @ 3.46 50.0 @ 1.00 100", "factor 1.0 60.0 @ 2.00 100"]


@pytest.mark.parametrize(
  "wrong, rule",
  [({"score": 1.5}, "score=1.5"), ({"n_forwards": 0}, "at least 1"), ({"seconds": 0}, "positive")],
)
def test_outcome_names_what_is_wrong(wrong, rule):
  right = {"score": 1, "n_tokens": 1, "n_forwards": 1, "seconds": 1.0}
  with pytest.raises(ValueError, match=rule):
    Outcome("p", "s", "t", **(right | wrong))


def test_pbx_is_the_fastest_setting_that_is_right_often_enough_over_all_tasks():
  points = [
    point("a", "slow", "x", accuracy=100, tpf=1), point("a", "slow", "y", accuracy=90, tpf=1),
    point("a", "fast", "x", accuracy=100, tpf=4), point("a", "fast", "y", accuracy=44, tpf=2),
  ]  # fmt: skip
  assert parallelism.pbx(points) == {90: 1, 80: 1, 70: 3, 60: 3}
  assert parallelism.pbx(points, (96,)) == {96: None}


def test_the_oracle_takes_the_fastest_right_setting_of_each_problem():
  def outcome(setting, score, forwards):
    return Outcome("a", setting, "x", score, n_tokens=8, n_forwards=forwards, seconds=1.0)

  outcomes = [
    outcome("slow", 1, 8), outcome("slow", 1, 8), outcome("slow", 0, 8),
    outcome("fast", 1, 2), outcome("fast", 0, 2), outcome("fast", 0, 4),
  ]  # fmt: skip
  (found,) = parallelism.oracle(outcomes)
  assert (found.setting, found.n) == ("oracle", 3)
  assert found.accuracy == pytest.approx(200 / 3) and found.nfe == pytest.approx((2 + 8 + 4) / 3)
  with pytest.raises(ValueError, match="settings of a have unequally many problems of x"):
    parallelism.oracle(outcomes[:-1])


def test_samples_of_a_problem_are_one_outcome():
  """Two problems, two samples each: n is 2, and the oracle chooses for a problem, not a sample."""

  def outcomes(setting, *scores, forwards):
    return [Outcome("a", setting, "x", score, 8, forwards, 1.0) for score in scores]

  slow = parallelism.by_problem(outcomes("slow", 1, 0, 0, 1, forwards=8), 2)
  fast = parallelism.by_problem(outcomes("fast", 0, 1, 0, 0, forwards=2), 2)
  assert [each.score for each in slow + fast] == [0.5, 0.5, 0.5, 0]
  (point, _), (best,) = parallelism.summarise(slow + fast), parallelism.oracle(slow + fast)
  assert (point.n, point.accuracy, point.nfe, point.tpf) == (2, 50, 8, 1)
  assert point.interval() == CurvePoint("a", "slow", "x", 50, 1, 1, 8, 1, n=2).interval()
  # The first problem is as good fast, the second slow alone; by samples it would be 75 %.
  assert (best.n, best.accuracy, best.nfe) == (2, 50, 5)
  with pytest.raises(ValueError, match="5 outcomes are no multiple of samples=2"):
    parallelism.by_problem(outcomes("slow", 1, 0, 0, 1, 1, forwards=8), 2)


# Points that d3LLM's authors publish. Of each task: tokens per forward and percent of the fastest
# setting, percent one token at a time, and the best percent of all methods that they compare.
PUBLISHED = {
  "d3LLM-LLaDA": (
    274.3, 637.65,
    ((9.11, 73.09, 74.02, 74.98), (5.74, 30.36, 32.76, 41.15), (4.21, 40.6, 42.0, 63.6),
     (5.95, 39.63, 39.8, 67.73), (6.95, 74.22, 78.32, 82.56)),
  ),
  "EAGLE-3": (
    305.3, 318.99,
    ((5.12, 76.57, 76.57, 83.94), (5.72, 39.8, 39.8, 49.92), (5.69, 60.2, 60.2, 63.8),
     (5.98, 67.58, 67.58, 72.25), (5.57, 80.52, 80.52, 82.56)),
  ),
}  # fmt: skip


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_areas_follow_from_published_points(method):
  """GSM8K, MATH, MBPP, HumanEval and long GSM8K: the first, and the mean of all five."""
  mean, gsm8k, tasks = PUBLISHED[method]
  areas = [parallelism.aup([(1, slow), (tpf, fast)], best) for tpf, fast, slow, best in tasks]
  assert areas[0] == pytest.approx(gsm8k, abs=5e-3)
  assert sum(areas) / 5 == pytest.approx(mean, abs=0.05)


def test_published_points_of_parallel_bench():
  """WINO on LLaDA-1.5: the leaderboard's speed at 80 %; k tokens a forward of 32 are 32 / k."""
  wino = ((5.01, 84.6), (5.92, 80.0), (6.59, 73.0), (7.3, 66.8), (8.16, 62.3))
  points = [point("wino", str(tpf), accuracy=y, tpf=tpf) for tpf, y in wino]
  assert parallelism.pbx(points) == {90: None, 80: 5.92, 70: 6.59, 60: 8.16}
  for k in (1, 2, 4, 8, 16, 32):
    outcomes = [Outcome("fixed", f"{k=}", "copy", 1.0, 32, 32 // k, 1.0)] * 3
    (found,) = parallelism.summarise(outcomes)
    assert (found.tpf, found.tpf_mean, found.nfe) == (k, k, 32 / k)
