"""What post-training gains in tokens a forward: five distillations, and LightningRL's rewards.

    make demo
    python -m experiments.studies.post_training --seeds=3

The demo's model begins with two more tasks, and is stopped while it is right more often than it is
sure. From there, seed by seed, 100 updates of each distillation. Two learn from the model's own
right answers, written one token a forward: d3LLM (arXiv 2601.07568) in the order in which it wrote
them, dParallel (czg1225/dParallel) under random masks. The others have the model as it was for a
teacher and read the data: DSCD (2601.02236), as its authors have it and with a teacher that is
certain of what it sees, and SDTT (jdeschena/sdtt) in two rounds. Beside them, further is trained on
the data for as many updates. rewarded answers and learns from accuracy and tokens per forward
(2603.13319), and right_only from accuracy alone. All held-out lists are asked. Writes
post_training.json. The same command goes on where it was stopped, and does nothing twice.
"""

import dataclasses
import json
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from dlm import build, checkpoint, command, completions, files, train
from dlm.data import Example, open_source
from dlm.evaluation import comparison, parallelism
from dlm.evaluation.comparison import Problem, Setting
from dlm.evaluation.parallelism import CurvePoint
from dlm.evaluation.tasks.lists import grade
from dlm.generate import generator
from experiments.benchmarks import results

WORKDIR = flags.DEFINE_string("workdir", "runs/post_training", "Where everything goes.")
MODEL = flags.DEFINE_string("model", "runs/demo/model", "What `make demo` trained.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each; a spread takes 2.", lower_bound=2)
ANSWERS = flags.DEFINE_integer("answers", 1000, "To distil from, a task.", lower_bound=1)

TASKS = ("sort", "remove_index")
LISTS = {"form": "grid", "items": (4, 4), "alphabet": "abcdefgh"}
SLOTS, TOKENS = 24, 8  # of a row; of an answer, its stop token too
DRAWN = 3000  # examples of a task: among them each held-out list several times
SPEEDS = ("one", "0.95", "0.9", "0.8", "0.6")  # a token a forward, and thresholds
POINTS = 1.0  # of accuracy that a faster setting may lose

ONCE = ("eval.every=0", "checkpoint.every=0", "checkpoint.keep_last=1", "checkpoint.keep_best=0")
ANSWERED, DATA = "answered", "data"  # what rows are: the model's own right answers, or new lists


@dataclasses.dataclass(frozen=True)
class Stage:
  """A run of the study."""

  config: str
  updates: int
  fields: tuple[str, ...]  # what differs from the config
  rows: str = DATA
  after: str = "begun"  # the stage that it starts from, and whose model teaches it


ON = ("optimizer.lr=1e-3", "optimizer.warmup=20")
DSCD = (*ON, "batch=64", "data.length=24", "objective.updates=100")
# The paper's rewards, filters and terms, at 16 answers of each of 16 prompts an update. States are
# drawn: the authors' estimate sees an answer all masked and no other way.
LIGHTNING = (
  "batch=256", "rewards.group=16", "rewards.margin=None", "data.length=24", "rollout.block=24",
  "rollout.max_new_tokens=8", "objective.estimator.name=block_masks",
  "objective.estimator.complement=True", "objective.estimator.block=24",
)  # fmt: skip
# Every update of a distillation and of `further` predicts masks of 64 rows: of d3LLM and dParallel
# 32 in two views. A block is the whole answer.
STAGES = {
  "begun": Stage(
    "configs/train/demo.py", 60, ("batch=64", "optimizer.lr=1e-3", "optimizer.warmup=10"), after=""
  ),
  "dscd": Stage("configs/train/dscd.py", 100, DSCD),
  "dscd_text": Stage("configs/train/dscd.py", 100, (*DSCD, "objective.seen=text")),
  "dparallel": Stage(
    "configs/train/dparallel.py", 100, (*ON, "batch=32", "objective.size=None"), ANSWERED
  ),
  "sdtt": Stage("configs/train/sdtt.py", 50, (*ON, "batch=64", "objective.dt=0.125")),
  "sdtt_2": Stage(
    "configs/train/sdtt.py", 50, (*ON, "batch=64", "objective.dt=0.25"), after="sdtt"
  ),
  "further": Stage("configs/train/demo.py", 100, (*ON, "batch=64")),
  "d3llm": Stage(
    "configs/train/d3llm.py",
    100,
    (*ON, "batch=32", "objective.sizes=(8,)", "objective.noise=(0.0,1.0)", "objective.updates=100"),
    ANSWERED,
  ),
  "rewarded": Stage("configs/train/rl.py:lightning", 60, LIGHTNING),
  "right_only": Stage(
    "configs/train/rl.py:lightning", 60, (*LIGHTNING, "rewards.of=(('exact', 1.0, 'zscore'),)")
  ),
}


@dataclasses.dataclass(frozen=True)
class Asked:
  """What one model answered."""

  stage: str
  seed: int  # 0: of the models that all seeds start from
  points: list[CurvePoint]  # of every task at each of SPEEDS
  cpu_seconds: float  # of training and asking, of the call that ended it

  def curve(self, task: str) -> dict[str, CurvePoint]:
    return {point.setting: point for point in self.points if point.task == task}


def sources() -> tuple[tuple, ...]:
  """Of rows: each task alike often, in a grid of its own."""
  options = {**LISTS, "mode": "pad", "pad": "none"}
  return tuple(("lists", 1.0, (("tasks", (task,)), *options.items())) for task in TASKS)


def examples(split: str, most: int = DRAWN) -> list[Example]:
  """Of each task so many different prompts; of the test split each list once."""
  found: list[Example] = []
  for task in TASKS:
    source, of_task = open_source("lists", split, tasks=(task,), **LISTS), {}
    for example in (source[i] for i in range(DRAWN)):
      if len(of_task) == most:
        break
      name = example.meta["items"] if split == "test" else example.prompt
      of_task.setdefault(name, example)
    found += of_task.values()
  return found


def problems(asked: Sequence[Example], trained: build.Training | build.Pretrained) -> list[Problem]:
  return [
    problem
    for i, example in enumerate(asked)
    for problem in comparison.list_problems(
      example.meta["task"], [example], 1, trained.tokenizer, first_id=i, max_new_tokens=TOKENS
    )
  ]


def sampling(speed: str) -> dict[str, Any]:
  one = speed == SPEEDS[0]
  policy = {"name": "fixed", "k": 1} if one else {"name": "threshold", "threshold": float(speed)}
  return {"policy": policy, "slots": SLOTS, "block": SLOTS, "batch": 128}


def settings(trained: build.Training) -> list[Setting]:
  made = ((speed, generator(sampling(speed), trained, mesh=trained.mesh)[0]) for speed in SPEEDS)
  return [Setting("fixed" if speed == SPEEDS[0] else "threshold", speed, of) for speed, of in made]


class Study:
  """Runs the stages of a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.samplers: list[Setting] = []  # of the model that all start from: each compiles once

  def run(self, stage: str, seed: int) -> Asked:
    """Trains and asks, or goes on with that, or finds it done."""
    folder, told = self.of(stage, seed), self.folder / f"{stage}-{seed}.json"
    if told.exists():
      record = json.loads(told.read_text())
      return Asked(**record | {"points": [CurvePoint(**point) for point in record["points"]]})
    print(f"\n{folder}", flush=True)
    began, trained = time.process_time(), self.built(stage, seed)
    state = train.train(trained, folder)
    if int(state.step) < trained.run.steps:
      sys.exit(0)
    params, _ = checkpoint.restore_params(folder, "latest")
    self.samplers = self.samplers or settings(trained)
    asked = problems(examples("test"), trained)
    outcomes, _ = comparison.compare(self.samplers, params, asked, seed=0)
    points, seconds = parallelism.summarise(outcomes), time.process_time() - began
    found = Asked(stage, seed, points, seconds)
    files.write_json(told, dataclasses.asdict(found), indent=1)
    print(f"{parallelism.table(points)}\n{seconds:.0f} s of CPU", flush=True)
    return found

  def of(self, stage: str, seed: int) -> pathlib.Path:
    return self.folder / f"{stage}-{seed}"

  def built(self, stage: str, seed: int) -> build.Training:
    of = STAGES[stage]
    run = build.RunConfig.read(of.config, (*ONCE, *of.fields, f"steps={of.updates}"))
    start = self.start(of.after, seed)
    rows = self.traces(start) if of.rows == ANSWERED else sources()
    data = dataclasses.replace(run.data, sources=rows)
    return build.everything(dataclasses.replace(run, seed=seed, init_from=start, data=data))

  def start(self, after: str, seed: int) -> str:
    """The model that a stage starts from: one for all seeds, or a stage's of this seed."""
    if not after:
      return str(pathlib.Path(MODEL.value))
    return str(self.of(after, seed if STAGES[after].after else 0))

  def traces(self, teacher: str) -> tuple[tuple, ...]:
    """The source of what the teacher writes, one token a forward; wrong answers are left out."""
    path = self.folder / "traces.jsonl"
    if path.exists():
      return ((f"traces:{path}", 1.0),)
    trained = build.pretrained(teacher, "latest")
    asked = examples("train", ANSWERS.value)
    one, _ = generator(sampling(SPEEDS[0]), trained)

    def wrong(record: dict[str, Any]) -> str:
      return "" if grade(asked[record["id"]], record["text"]) else "wrong"

    with completions.Output(path, [trained.config, ANSWERS.value]) as output:
      output.fill(
        one,
        trained.params()[0],
        [problem.request for problem in problems(asked, trained)],
        seed=0,
        records=lambda done: [completions.record(each, trace=True) for each in done],
        leave_out=wrong,
      )
    return ((f"traces:{path}", 1.0),)


def spread(values: Sequence[float]) -> str:
  """Mean and standard deviation over seeds."""
  return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def best(asked: Asked, task: str, least: float) -> float:
  """Most tokens a forward, over the settings, at no less accuracy than `least`; 0: none has it."""
  return max((p.tpf for p in asked.curve(task).values() if p.accuracy >= least), default=0.0)


def comparisons(before: Asked, after: Sequence[Asked]) -> list[results.Row]:
  """Of each task: tokens a forward after over before, each at its best threshold that costs at most
  POINTS of what the model before had, one token a forward; then every setting by itself."""
  rows: list[results.Row] = []
  for task in TASKS:
    curve = before.curve(task)
    least = curve[SPEEDS[0]].accuracy - POINTS
    ratios = [best(each, task, least) / best(before, task, least) for each in after]
    row: results.Row = {"ratio": spread(ratios), "stage": after[0].stage, "task": task}
    row["at least"] = f"{least:.1f} %"
    for speed in SPEEDS:
      was, points = curve[speed], [each.curve(task)[speed] for each in after]
      ratio, accuracy, tpf = (
        spread([of(point) for point in points])
        for of in (lambda p, tpf=was.tpf: p.tpf / tpf, lambda p: p.accuracy, lambda p: p.tpf)
      )
      row[speed] = f"{ratio} times: {was.accuracy:.1f} % @ {was.tpf:.2f}, now {accuracy} % @ {tpf}"
    rows.append(row)
  return rows


def main() -> None:
  began = time.perf_counter()
  folder = pathlib.Path(WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  study = Study(folder)
  begun = study.run("begun", 0)
  runs, rows = [begun], []
  for stage in list(STAGES)[1:]:
    after = [study.run(stage, seed) for seed in range(1, SEEDS.value + 1)]
    told = comparisons(begun, after)
    for row in told:
      print("\n" + "\n".join(f"{name:15} {value}" for name, value in row.items()), flush=True)
    runs, rows = [*runs, *after], [*rows, *told]
  record = {
    "command": shlex.join(["python", "-m", "experiments.studies.post_training", *sys.argv[1:]]),
    **results.facts(),
    "rows": rows,
    "runs": [dataclasses.asdict(each) for each in runs],
  }
  files.write_json(folder / "post_training.json", record, indent=1)
  print(f"\n{folder / 'post_training.json'}, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  command.run(main)
