"""What `experiments.studies.experts` says of its runs: learning by noise level, spreads, claims."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dlm.objectives.cross_entropy import NOISE_BINS
from experiments.benchmarks.results import Row, Table

ARMS = {
  "token": "tokens choose, dropless",
  "capacity": "tokens choose, capacity 1.25",
  "static": "experts choose, static",
  "linear": "experts choose, linear",
  "linear_reverse": "experts choose, linear_reverse",
}
SOURCE = "source"
WAYS = {
  "tokens": "tokens choose on",
  "kept": "experts choose, weights as they are",
  "renormalised": "experts choose, weights renormalised",
  "routers": "experts choose, weights as they are, routers alone tuned",
}
ROUTER = ("per_token", "load", "load_worst", "unchosen", "unchosen_worst", "dropped")
QUARTERS = 4  # of the noise levels
CLAIMS = (  # better, worse, the measure, and the paper's numbers
  ("static", "token", "loss", "sooner at a loss: 10.6 h, dropless 20.7 h; 8 GPUs"),
  ("static", "capacity", "loss", "sooner at a loss: 10.6 h, capacity 1.25 19.9 h; 8 GPUs"),
  ("static", "token", "seconds", "52.1 TFLOP/s, dropless 24.9; 8 GPUs"),
  ("static", "capacity", "seconds", "52.1 TFLOP/s, capacity 1.25 27.0; 8 GPUs"),
  ("linear_reverse", "static", "loss", "perplexity 36.5, 37.1: 0.016 nats"),
  ("static", "linear", "loss", "perplexity 37.1, 37.5: 0.011 nats"),
  ("linear_reverse", "linear", "loss", "perplexity 36.5, 37.5: 0.027 nats"),
  ("static", "linear_reverse", "unchosen", "2.7 % of tokens without an expert, dynamic 8.0 %"),
)


@dataclasses.dataclass(frozen=True)
class ArmRun:
  """One run of an arm."""

  arm: str
  seed: int
  loss: float  # held out, nats per token
  quarters: list[float]  # held-out cross-entropy of a masked token by quarter of the noise level
  efficiency: list[tuple[float, float]]  # by quarter, see `learning_efficiency`
  curve: list[tuple[int, float]]  # step, training loss
  seconds: float  # an update, the median
  gflops: float  # of an update's matmuls
  router: dict[str, float]  # over the second half of the run

  def value(self, measure: str) -> float:
    return self.router[measure] if measure in ROUTER else getattr(self, measure)

  def __str__(self) -> str:
    return f"{ARMS[self.arm]}, seed {self.seed}: {self.loss:.4f} nats, {self.seconds:.3f} s/update"


@dataclasses.dataclass(frozen=True)
class Tuned:
  """A model that changed sides: held-out nats per token."""

  way: str
  seed: int
  before: float
  at_once: float  # the same weights, routed otherwise
  after: float  # tuned

  def __str__(self) -> str:
    losses = f"{self.before:.4f}, at once {self.at_once:.4f}, tuned {self.after:.4f} nats"
    return f"{WAYS[self.way]}, seed {self.seed}: {losses}"


def by_quarter(metrics: Mapping[str, Any], name: str) -> np.ndarray:
  """Sums of "ce" or "masked" (`dlm.objectives.cross_entropy`) by quarter of the noise level."""
  bins = [float(metrics[f"{name}_at_noise/{i}"]) for i in range(NOISE_BINS)]
  return np.array(bins).reshape(QUARTERS, -1).sum(1)


def learning_efficiency(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
  """By quarter of the noise level -d ln L / dt and -dL / dt, t in thousands of updates.

  L is the training cross-entropy of a masked token; straight lines through the records behind the
  first quarter of the run, in which all levels learn how often each token occurs.
  """
  late = records[len(records) // 4 :]
  step = np.array([record["step"] for record in late]) / 1000
  ce, masked = (np.array([by_quarter(r, name) for r in late]) for name in ("ce", "masked"))
  found = []
  for q in range(QUARTERS):
    seen = masked[:, q] > 0
    if seen.sum() < 2:
      found.append((float("nan"), float("nan")))
      continue
    level = ce[seen, q] / masked[seen, q]
    slopes = (np.polyfit(step[seen], y, 1)[0] for y in (np.log(level), level))
    found.append(tuple(-float(slope) for slope in slopes))
  return found


# ---------------------------------------------------------------------------------------------
# Telling


def spread(values: Sequence[float], form: str = ".4f") -> str:
  """Mean and standard deviation over seeds; one seed has no spread."""
  mean = f"{statistics.mean(values):{form}}"
  return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


def pairs(runs: Sequence[ArmRun], arm: str, other: str, measure: str) -> list[float]:
  """`arm` less `other`, seed by seed."""
  by_run = {(run.arm, run.seed): run.value(measure) for run in runs}
  seeds = sorted({run.seed for run in runs})
  return [by_run[arm, seed] - by_run[other, seed] for seed in seeds if (arm, seed) in by_run]


def soon(runs: Sequence[ArmRun], run: ArmRun) -> float:
  """Seconds until the training loss is as low as that of `token` at the end, same seed and rows.

  Means of five records on both sides; inf: it is never as low.
  """
  token = next(each for each in runs if (each.arm, each.seed) == ("token", run.seed))

  def smooth(curve: Sequence[tuple[int, float]]) -> np.ndarray:
    width = min(5, len(curve))
    return np.convolve([loss for _, loss in curve], np.ones(width) / width, "valid")

  reached = np.flatnonzero(smooth(run.curve) <= smooth(token.curve)[-1])
  if not len(reached):
    return float("inf")
  records = reached[0] + len(run.curve) - len(smooth(run.curve))
  return run.curve[records][0] * run.seconds


def of_runs(runs: Sequence[ArmRun]) -> Iterator[Table]:
  found = [arm for arm in ARMS if any(run.arm == arm for run in runs)]
  rows: list[Row] = []
  quarters: list[Row] = []
  for arm in found:
    own = [run for run in runs if run.arm == arm]
    row: Row = {"arm": ARMS[arm], "loss": spread([run.loss for run in own])}
    if "static" in found:
      row["less static"] = spread(pairs(runs, arm, "static", "loss"), "+.4f")
    row["s/update"] = spread([run.seconds for run in own], ".3f")
    row["GFLOP"] = round(own[0].gflops, 2)
    if "token" in found:
      row["s to token's loss"] = spread_or_never([soon(runs, run) for run in own])
    for name in ROUTER:
      row[name] = f"{statistics.mean(run.router[name] for run in own):.3f}"
    rows.append(row)
    by_level: Row = {"arm": ARMS[arm]}
    for q in range(QUARTERS):
      at = f"{q / QUARTERS}-{(q + 1) / QUARTERS}"
      by_level[f"ce {at}"] = spread([run.quarters[q] for run in own], ".3f")
    for q in range(QUARTERS):
      by_level[f"eta {q + 1}"] = spread([run.efficiency[q][0] for run in own], ".2f")
    for q in range(QUARTERS):
      by_level[f"slope {q + 1}"] = spread([run.efficiency[q][1] for run in own], ".2f")
    quarters.append(by_level)
  note = "nats per held-out token and seconds, mean ± standard deviation over seeds; router's means"
  yield Table("At equal FLOPs", note, rows)
  note = "cross-entropy of a held-out masked token; -d ln L / dt and -dL / dt a thousand updates"
  yield Table("By quarter of the noise level", note, quarters)


def spread_or_never(seconds: Sequence[float]) -> str:
  reached = [each for each in seconds if each != float("inf")]
  if len(reached) < len(seconds):
    return f"never in {len(seconds) - len(reached)} of {len(seconds)}"
  return spread(reached, ".1f")


def of_retrofit(tuned: Sequence[Tuned]) -> Iterator[Table]:
  rows: list[Row] = []
  control = {each.seed: each.after for each in tuned if each.way == "tokens"}
  for way, name in WAYS.items():
    own = [each for each in tuned if each.way == way]
    if not own:
      continue
    row: Row = {"way": name, "before": f"{own[0].before:.4f}"}
    row["jump at once"] = f"{own[0].at_once - own[0].before:+.4f}"
    row["tuned"] = spread([each.after for each in own])
    if control:
      row["less tokens'"] = spread([each.after - control[each.seed] for each in own], "+.4f")
    rows.append(row)
  if rows:
    yield Table("Change of sides", "nats per held-out token; spreads are of tuning alone", rows)


def claims(runs: Sequence[ArmRun], backend: str) -> list[dict[str, Any]]:
  """The paper's order beside ours, seed by seed: how much less the better one has.

  One seed claims nothing. Nor does a CPU of dropless tokens' time: it pads what others need not.
  """
  found = {run.arm for run in runs if run.seed > 1}
  told = []
  for better, worse, measure, paper in CLAIMS:
    if not {better, worse} <= found or (worse, measure, backend) == ("token", "seconds", "cpu"):
      continue
    less = [-each for each in pairs(runs, better, worse, measure)]
    told.append(
      {
        **{"better": better, "worse": worse, "measure": measure, "paper": paper},
        **{"mean": statistics.mean(less), "sd": statistics.stdev(less), "verdict": verdict(less)},
      }
    )
  for arm in found & {"static", "linear_reverse"}:
    own = [run for run in runs if run.arm == arm]
    faster = [run.efficiency[0][0] - run.efficiency[-1][0] for run in own]
    told.append(
      {
        **{"better": arm, "worse": arm, "measure": "eta of the first quarter over the last"},
        **{"paper": "about seven times", "mean": statistics.mean(faster)},
        **{"sd": statistics.stdev(faster), "verdict": verdict(faster)},
      }
    )
  return told


def verdict(gains: Sequence[float]) -> str:
  """A sign counts where the mean gain is more than one standard deviation over seeds."""
  mean, sd = statistics.mean(gains), statistics.stdev(gains)
  if not abs(mean) > sd:
    return "within the spread of seeds"
  return "as in the paper" if mean > 0 else "against the paper"


def sentence(claim: Mapping[str, Any]) -> str:
  who = ARMS[claim["better"]]
  if claim["better"] != claim["worse"]:
    who += f" has less {claim['measure']} than {ARMS[claim['worse']]}"
  else:
    who += f", {claim['measure']}"
  ours = f"{claim['mean']:+.4f} ± {claim['sd']:.4f}, {claim['verdict']}"
  return f"{who}. Paper: {claim['paper']}. Ours: {ours}."
