"""An autoregressive model becomes a diffusion model in four ways: which keeps most of what it knew?

    python -m experiments.studies.convert --workdir=runs/convert

Trains a small model on list problems, then goes on from it in each of WAYS, with equal tokens and
several seeds, and asks all of them the same held-out problems. The question, and the answer beside
ours, are Efficient-DLM's (arXiv 2512.14067, Tables 1 and 2, Figure 2e). Writes convert.json and
report.html. The same command goes on where it was stopped, and trains nothing twice.
"""

import collections
import dataclasses
import itertools
import math
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from dlm import build, checkpoint, command, files, train
from dlm.data import open_source
from dlm.evaluation import comparison, parallelism, report
from dlm.evaluation.comparison import Problem, Setting
from dlm.evaluation.parallelism import CurvePoint, Outcome
from dlm.generate import Generator, generator
from dlm.types import Params
from experiments.benchmarks import results

WORKDIR = flags.DEFINE_string("workdir", "runs/convert", "Where everything goes.")
CONFIG = flags.DEFINE_string(
  "config", "configs/train/convert.py", "How to train: its get_config knows 'ar' and the four ways."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Conversions each way; a spread takes 2.", lower_bound=2)
PROBLEMS = flags.DEFINE_integer("problems", 64, "Held-out problems a task.", lower_bound=1)

AR = "ar"
WAYS = {
  "full": "(a) full bidirectional",
  "noisy": "(b) blocks, noisy context",
  "clean": "(c) blocks, clean context",
  "tilted": "(d) c, late tokens masked more",
}
NAMES = {AR: "AR, before conversion", **WAYS}
SPEEDS = (1, 2, 4)  # tokens decided together, the most confident of their block
GROUPS = ("attention", "mlp", "embed")  # of parameters; "all" holds the norms too
CLAIMS = (  # better, worse, and the paper's differences
  ("clean", "full", "+19.1 (Table 1, Qwen2.5-1.5B, mean of six tasks: 38.41, 19.29), less drift"),
  ("clean", "noisy", "+9.5 (Table 1, both with token shift: 37.69, 28.23), less drift"),
  ("tilted", "clean", "+1.75 at TPF 1, +2.64 at TPF 4 (Table 2, Qwen3-4B)"),
)


@dataclasses.dataclass(frozen=True)
class Converted:
  """One conversion, or (seed 0) the model that all of them start from."""

  way: str
  seed: int
  outcomes: dict[int, list[Outcome]]  # by tokens decided together
  drift: dict[str, float]  # see `drift`

  def mean(self, k: int) -> CurvePoint:
    """Over the tasks."""
    return parallelism.mean_over_tasks(parallelism.summarise(self.outcomes[k]))[0]

  def __str__(self) -> str:
    means = "  ".join(f"{p.accuracy:.1f} @ {p.tpf:.2f}" for p in map(self.mean, self.outcomes))
    return f"{NAMES[self.way]}, seed {self.seed}: {means}; drift {self.drift['all']:.1f} %"


# ---------------------------------------------------------------------------------------------
# Training and asking


def config_of(way: str, **fields: Any) -> build.RunConfig:
  config = build.RunConfig.read(f"{CONFIG.value}:{way}", command.FIELDS.value)
  return dataclasses.replace(config, **fields)


def trained(way: str, folder: pathlib.Path, **fields: Any) -> build.Training:
  """Trains, or goes on, or finds it done; ends the program where it is told to stop."""
  print(f"\n{NAMES[way]}: {folder}", flush=True)
  training = build.everything(config_of(way, **fields))
  state = train.train(training, folder)
  if int(state.step) < training.run.steps:
    sys.exit(0)
  return training


def held_out(training: build.Training, n: int) -> list[Problem]:
  """`n` problems of each task, out of rows as they were trained on: all tasks in one grid."""
  (_, _, options), *_ = training.run.data.sources
  options = {name: value for name, value in options if name not in ("mode", "pad")}
  source = open_source("lists", "test", **options)
  problems: list[Problem] = []
  for task in options["tasks"]:
    rows = (source[i] for i in range(len(source)))
    examples = list(itertools.islice((e for e in rows if e.meta["task"] == task), n))
    longest = max(len(training.tokenizer.encode(example.completion)) for example in examples)
    problems += comparison.list_problems(
      task,
      examples,
      n,
      training.tokenizer,
      first_id=len(problems),
      max_new_tokens=longest + 1,  # the stop token
    )
  return problems


def generators(training: build.Training, block: int, speeds: Sequence[int]) -> dict[int, Generator]:
  """By tokens decided together. Every way decides the same blocks, counted from the row's start."""
  found = {}
  for k in speeds:
    policy = {"name": "fixed", "k": k}
    config = {"policy": policy, "block": block, "align": "canvas", "batch": 64}
    found[k], _ = generator(config, training, mesh=training.mesh)
  return found


def drift(start: Params, end: Params) -> dict[str, float]:
  """Norm of the change in percent of the norm at the start, over all parameters and by group."""
  squares: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
  pairs = jax.tree.map(lambda a, b: np.array([((b - a) ** 2).sum(), (a**2).sum()]), start, end)
  for path, pair in jax.tree_util.tree_leaves_with_path(pairs):
    for group in ("all", *(g for g in GROUPS if f"'{g}'" in jax.tree_util.keystr(path))):
      squares[group] += pair
  return {group: 100 * math.sqrt(change / norm) for group, (change, norm) in squares.items()}


def asked(
  way: str,
  seed: int,
  training: build.Training,
  folder: pathlib.Path,
  samplers: dict[int, Generator],
  problems: list[Problem],
) -> Converted:
  params, _ = checkpoint.restore_params(folder, "latest")
  start = params if training.source is None else training.source.params()[0]
  outcomes = {
    k: comparison.compare([Setting(NAMES[way], f"k={k}", one)], params, problems, seed=0)[0]
    for k, one in samplers.items()
  }
  moved = drift(jax.device_get(start), jax.device_get(params))
  converted = Converted(way, seed, outcomes, moved)
  print(converted, flush=True)
  return converted


def convert(workdir: pathlib.Path, seeds: int) -> list[Converted]:
  """The model, then every way from it, seed by seed. A seed draws the rows and their noise."""
  source = workdir / AR
  training = trained(AR, source)
  problems = held_out(training, PROBLEMS.value)
  found = [asked(AR, 0, training, source, generators(training, 1, (1,)), problems)]
  samplers: dict[str, dict[int, Generator]] = {}  # by what the model sees: each compiles once
  block = config_of("clean").objective.fields["block"]
  for seed, way in itertools.product(range(1, seeds + 1), WAYS):
    folder = workdir / f"{way}-{seed}"
    training = trained(way, folder, seed=seed, init_from=str(source))
    sees = training.facts.attention_name
    if sees not in samplers:
      samplers[sees] = generators(training, block, SPEEDS)
    found.append(asked(way, seed, training, folder, samplers[sees], problems))
  return found


# ---------------------------------------------------------------------------------------------
# Telling


def spread(values: Sequence[float]) -> str:
  """Mean and standard deviation over seeds; the one model at the start has no spread."""
  if len(values) < 2:
    return f"{values[0]:.1f}" if values else "-"
  return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def table(found: Sequence[Converted]) -> results.Table:
  rows = []
  for way, name in NAMES.items():
    runs = [run for run in found if run.way == way]
    row: results.Row = {"conversion": name}
    for k in SPEEDS:
      tpf = statistics.mean(run.mean(k).tpf for run in found if k in run.outcomes)
      row[f"TPF {tpf:.2f}"] = spread([r.mean(k).accuracy for r in runs if k in r.outcomes])
    for group in ("all", *GROUPS):
      row[f"drift {group}"] = spread([run.drift[group] for run in runs])
    rows.append(row)
  note = "% of held-out problems solved by tokens per forward; % that the AR weights moved"
  return results.Table("Mean ± standard deviation over seeds", note, rows)


def verdict(gains: Sequence[float]) -> str:
  """A sign counts where the mean gain is more than one standard deviation over seeds."""
  mean, sd = statistics.mean(gains), statistics.stdev(gains)
  if abs(mean) <= sd:
    return "within the spread of seeds"
  return "as in the paper" if mean > 0 else "against the paper"


def claims(found: Sequence[Converted]) -> list[dict[str, Any]]:
  """The paper's order beside ours: points of accuracy, and points less of drift, seed by seed."""
  by_run = {(run.way, run.seed): run for run in found}
  seeds = sorted({seed for way, seed in by_run if way != AR})
  told = []
  for better, worse, paper in CLAIMS:
    pairs = [(by_run[better, seed], by_run[worse, seed]) for seed in seeds]
    gains = {f"k={k}": [a.mean(k).accuracy - b.mean(k).accuracy for a, b in pairs] for k in SPEEDS}
    if better == "clean":  # Figure 2e does not show the fourth way
      gains["less drift"] = [b.drift["all"] - a.drift["all"] for a, b in pairs]
    measures = {
      name: {"mean": statistics.mean(v), "sd": statistics.stdev(v), "verdict": verdict(v)}
      for name, v in gains.items()
    }
    told.append({"better": better, "worse": worse, "paper": paper, "ours": measures})
  return told


def sentence(claim: dict[str, Any]) -> str:
  ours = "; ".join(
    f"{name} {each['mean']:+.1f} ± {each['sd']:.1f}, {each['verdict']}"
    for name, each in claim["ours"].items()
  )
  return (
    f"{NAMES[claim['better']]} over {NAMES[claim['worse']]}, points. "
    f"Paper: {claim['paper']}. Ours: {ours}."
  )


def write(workdir: pathlib.Path, found: Sequence[Converted], head: dict[str, Any]) -> None:
  """convert.json: every run by task; report.html: the curves, seeds together."""
  told = claims(found)
  runs = [
    {
      "way": run.way,
      "seed": run.seed,
      "drift": run.drift,
      "points": [
        dataclasses.asdict(point)
        for outcomes in run.outcomes.values()
        for point in parallelism.summarise(outcomes)
      ],
    }
    for run in found
  ]
  record = head | {"claims": told, "runs": runs}
  files.write_json(workdir / "convert.json", record, indent=1)
  points = curves(found)
  page = report.Report(
    title="From an autoregressive model to a diffusion model, four ways",
    sentence="The same model goes on from the same weights with equal tokens: what it sees, and "
    "what is masked, differs. Held-out list problems, temperature 0.",
    vocab=256,  # bytes
    facts=(("device", head["device"]["host"]), ("date", head["date"][:10])),
    curves=points,
    notes=("A point holds all seeds; convert.json holds each.", *map(sentence, told)),
  )
  report.write_report(workdir / "report.html", page)


def curves(found: Sequence[Converted]) -> tuple[CurvePoint, ...]:
  outcomes = [o for run in found for at_speed in run.outcomes.values() for o in at_speed]
  points = parallelism.summarise(outcomes)
  return (*parallelism.mean_over_tasks(points), *points)


def main() -> None:
  began = time.perf_counter()
  workdir = pathlib.Path(WORKDIR.value)
  found = convert(workdir, SEEDS.value)
  head = {
    "command": shlex.join(["python", "-m", "experiments.studies.convert", *sys.argv[1:]]),
    **results.facts(),
    "seconds_of_this_call": time.perf_counter() - began,
    "cpu_seconds_of_this_call": time.process_time(),
  }
  write(workdir, found, head)
  print(f"\n{table(found)}\n\n{parallelism.table(curves(found))}\n")
  print("\n".join(map(sentence, claims(found))))
  wall, cpu = head["seconds_of_this_call"], head["cpu_seconds_of_this_call"]
  print(f"\n{workdir / 'report.html'}, after {wall:.0f} s, {cpu:.0f} s of CPU")


if __name__ == "__main__":
  command.run(main)
