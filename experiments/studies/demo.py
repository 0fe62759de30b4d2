"""The demo: train a small diffusion language model, watch it write, compare ways to sample it.

    make demo

Writes runs/demo/: model (a checkpoint folder), report.html (open it in a browser), picture.png.
A second run takes up the trained model and samples only.
"""

import dataclasses
import pathlib
import time

from absl import flags

from dlm import build, checkpoint, command, live, metrics, train
from dlm.data import Source, open_source
from dlm.evaluation import comparison, parallelism, report
from dlm.evaluation.comparison import Hole, Problem, Setting
from dlm.generate import Completion, generator
from dlm.types import Params

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Where everything goes.")
CONFIG = flags.DEFINE_string("config", "configs/train/demo.py", "How to train.")
STEPS = flags.DEFINE_integer("steps", 0, "Updates; 0: as the config says.", lower_bound=0)
PROBLEMS = flags.DEFINE_integer("problems", 64, "Held-out problems a task.", lower_bound=1)

DETERMINED = ("copy", "reverse")  # one right answer for every prompt
ITEMS = 4
TOKENS = 2 * ITEMS  # four letters, the spaces between them and the stop token
HOLES = 120
HOLES_SHOWN = 6
SLOTS = 24  # a row of training
HOLE = dict(start=10, size=3, end=SLOTS)
SPEEDS = (1, 2, 4)  # items of a shuffle decided together

Fields = dict[str, int | float | str]

# (policy, setting, fields of the policy). Temperature 0.
GREEDY: tuple[tuple[str, str, Fields], ...] = (
  ("confidence", "k=1", {"name": "fixed", "k": 1}),
  ("confidence", "k=2", {"name": "fixed", "k": 2}),
  ("confidence", "k=4", {"name": "fixed", "k": 4}),
  ("random order", "k=4", {"name": "fixed", "k": 4, "order": "random"}),
  ("left to right", "k=4", {"name": "left_to_right", "k": 4}),
  ("threshold", "0.9", {"name": "threshold", "threshold": 0.9}),
  ("threshold", "0.6", {"name": "threshold", "threshold": 0.6}),
  ("factor", "1.0", {"name": "factor", "factor": 1.0}),
)
SHOWN = (("confidence", "k=1"), ("threshold", "0.9"), ("confidence", "k=4"))  # traces, holes


class Demo:
  """The trained model and what samples it."""

  def __init__(self, training: build.Training, folder: pathlib.Path):
    self.training, self.folder = training, folder
    self.params: Params = checkpoint.restore_params(folder, "latest")[0]
    spec = dict((name, options) for name, _, options in training.run.data.sources)
    self.list_options = {
      key: value for key, value in spec["lists"] if key in ("form", "items", "alphabet")
    }
    self.text_options = dict(spec["stdlib"])

  def setting(self, policy: str, setting: str, fields: Fields, temperature: float) -> Setting:
    config = {"policy": fields, "temperature": temperature, "batch": 64, "slots": SLOTS}
    made, _ = generator(config, self.training, mesh=self.training.mesh)
    return Setting(policy, setting, made)

  def lists(self, task: str) -> Source:
    return open_source("lists", "test", tasks=(task,), **self.list_options)

  def problems(self, task: str, n: int, first_id: int) -> list[Problem]:
    return comparison.list_problems(
      task,
      self.lists(task),
      n,
      self.training.tokenizer,
      first_id=first_id,
      max_new_tokens=TOKENS,
    )

  def holes(self) -> list[Hole]:
    test, seen = (open_source("stdlib", split, **self.text_options) for split in ("test", "train"))
    return comparison.holes(test, seen, HOLES, **HOLE)


def trained(folder: pathlib.Path) -> tuple[Demo, float]:
  """Trains, or goes on, or finds it done; also the seconds that took."""
  config = build.RunConfig.read(CONFIG.value, command.FIELDS.value)
  training = build.everything(dataclasses.replace(config, steps=STEPS.value or config.steps))
  began = time.perf_counter()
  train.train(training, folder)
  return Demo(training, folder), time.perf_counter() - began


def watch(demo: Demo, problems: list[Problem]) -> None:
  """Denoises one problem a task before the reader's eyes."""
  setting = demo.setting("threshold", "0.9", {"name": "threshold", "threshold": 0.9}, 0.0)
  requests = [problem.request for problem in problems]
  canvases = setting.generator.stream(demo.params, requests)
  live.show(
    canvases, len(requests), demo.training.tokenizer, setting.generator.sampler.mask_id, seconds=0.4
  )


def shuffles(
  demo: Demo, n: int
) -> tuple[tuple[report.Shuffled, ...], tuple[report.Determined, ...]]:
  """Shuffling at temperature 1, some items decided together; the other tasks, all at once."""
  tasks = ("shuffle", *DETERMINED)
  problems = [p for i, task in enumerate(tasks) for p in demo.problems(task, n, first_id=i * n)]
  settings = [
    demo.setting("left to right", f"k={2 * k}", {"name": "left_to_right", "k": 2 * k}, 1.0)
    for k in SPEEDS
  ]
  outcomes, _ = comparison.compare(settings, demo.params, problems, seed=0)
  accuracy = {(p.task, p.setting): p.accuracy for p in parallelism.summarise(outcomes)}
  together = SPEEDS[-1]
  return (
    tuple(report.Shuffled(ITEMS, k, accuracy["shuffle", f"k={2 * k}"]) for k in SPEEDS),
    tuple(
      report.Determined(task, together, accuracy[task, f"k={2 * together}"]) for task in DETERMINED
    ),
  )


def losses(folder: pathlib.Path) -> tuple[report.LossPoint, ...]:
  return tuple(
    report.LossPoint(record["step"], split, record[name])
    for record in metrics.records(folder)
    for name, split in (("loss", "train"), ("eval/loss", "eval"))
    if name in record
  )


def traces(
  demo: Demo, problems: list[Problem], done: dict[tuple[str, str], list[Completion]]
) -> tuple[report.Trace, ...]:
  """The first problem of every task, by three policies; fillings are not graded here."""
  first = {problem.task: i for i, problem in reversed(list(enumerate(problems)))}
  tokenizer, found = demo.training.tokenizer, []
  for task, i in sorted(first.items(), key=lambda item: item[1]):
    for key in SHOWN:
      correct = problems[i].score(done[key][i]) == 1 if task != "infill" else None
      found.append(comparison.trace(task, *key, done[key][i], tokenizer, correct))
  return tuple(found)


def sentence(demo: Demo) -> str:
  config, run = demo.training.model.config, demo.training.run
  read = run.steps * run.batch * run.data.length
  return (
    f"A masked diffusion transformer of {config.n_params() / 1e6:.2f} million parameters read "
    f"{read / 1e6:.1f} million bytes of list problems and "
    "Python's reference text. Below: how it writes, and what writing faster costs."
  )


def facts(demo: Demo, seconds: float) -> tuple[tuple[str, str], ...]:
  run, config = demo.training.run, demo.training.model.config
  return (
    ("model", f"{config.layers} layers of width {config.width}, {config.n_params():,} parameters"),
    ("objective", "an exact number of bytes masked, "
     f"in blocks of {demo.training.objective.block}"),
    ("trained on", f"{run.steps * run.batch * run.data.length:,} bytes in {run.steps} steps"),
    ("training took", f"{seconds:.0f} s" if seconds > 5 else "nothing: the model was there"),
    *report.here(),
  )  # fmt: skip


NOTES = (
  "Every setting samples the same held-out problems with the same weights at temperature 0; "
  "lists that appear here are never drawn for training. A token is a byte. The stop token costs "
  "forwards but is not counted as a token, so one token at a time shows as a little less than 1.",
  f"The mean is over {' and '.join(DETERMINED)}, the tasks whose answer the prompt determines.",
  f"Holes are {HOLE['size']} letters within a word, in excerpts of {HOLE['end']} characters of "
  "held-out text that stand nowhere in the training text; all of the excerpt is seen, before the "
  "hole and behind it. The baseline writes the letter that these holes hold most often.",
)


def main() -> None:
  began = time.perf_counter()
  workdir = pathlib.Path(WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  print("1/4 train", flush=True)
  demo, seconds = trained(workdir / "model")

  n, tasks = PROBLEMS.value, (*DETERMINED, "shuffle")
  holes = demo.holes()
  tokenizer = demo.training.tokenizer
  problems = [p for i, task in enumerate(tasks) for p in demo.problems(task, n, first_id=i * n)]
  problems += [
    comparison.hole_problem(h, len(tasks) * n + i, tokenizer) for i, h in enumerate(holes)
  ]
  print("2/4 watch it write: held-out problems, threshold 0.9", flush=True)
  watch(demo, [*problems[: len(tasks) * n : n], problems[-1]])

  print(f"3/4 compare {len(GREEDY)} settings on {len(problems)} held-out problems", flush=True)
  settings = [demo.setting(*greedy, 0.0) for greedy in GREEDY]
  outcomes, done = comparison.compare(settings, demo.params, problems, seed=0)
  points = parallelism.summarise(outcomes)
  means = parallelism.mean_over_tasks([p for p in points if p.task in DETERMINED])
  print(parallelism.table([*means, *points]))

  filled = {key: all_done[len(tasks) * n :] for key, all_done in done.items()}
  fillings = comparison.fillings(holes, filled)
  print(f"infilling, {HOLES} holes: % of characters right, % of holes wholly right")
  for row in fillings:
    print(f"{row.policy:13}  {row.setting:8}  {row.characters:5.1f}  {row.whole:5.1f}")

  print("4/4 report", flush=True)
  shuffled, determined = shuffles(demo, 4 * n)
  made = report.Report(
    title="A diffusion language model, trained and sampled in minutes",
    sentence=sentence(demo),
    vocab=tokenizer.vocab_size,
    facts=facts(demo, seconds),
    losses=losses(workdir / "model"),
    curves=(*means, *points),
    shuffle=shuffled,
    determined=determined,
    traces=traces(demo, problems, done),
    fillings=fillings,
    infills=tuple(
      comparison.infill(f"hole {i + 1}", holes[i], {key: filled[key][i] for key in SHOWN})
      for i in range(0, HOLES, HOLES // HOLES_SHOWN)  # from all of the text
    ),
    notes=NOTES,
  )
  report.write_report(workdir / "report.html", made)
  drawn = next(t for t in made.traces if (t.sample, t.policy) == ("shuffle", "threshold"))
  report.picture(workdir / "picture.png", made, shown=("mean", "shuffle"), trace=drawn)
  print(f"{workdir / 'report.html'}, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  command.run(main)
