r"""Likelihood of a text split: `python experiments/evaluate.py --checkpoint=DIR`.

DIR is a checkpoint folder, a Hugging Face directory, FILE.gguf or package:NAME. The text is that of
the checkpoint's own training, or with --config=FILE.py that of another training config's `data`:
published weights come without. Prints nats and bits per token and perplexity, each with its
standard error over sequences; from a diffusion model they are bounds, to be read as "at most".

With --task it answers held-out problems instead, and --config says how to sample:

python experiments/evaluate.py --checkpoint=DIR --config=configs/sample/ar.py --chat --shots=4 \
  --config.max_new_tokens=32 --task=reasoning_gym:chain_sum,gcd --out=RESULTS.json

It prints the share of right answers of each task (`dlm.evaluation.tasks` names them) with its
standard error, and tokens per forward. --chat asks through the checkpoint's chat template, else a
problem is text to continue; --shots=4 shows worked examples before each (from which a chat model
learns that the answer alone is wanted), --size=100 problems are asked of each task, and
--option='chain_sum={"max_digits": 2}' sets a task. --samples=10 asks each problem so often, at a
temperature, and tells pass@1 and pass@10. --efficiency times the programs that pass, of humaneval
and mbpp, and tells eff@k: how fast the best of k is beside the reference.

--sweep=policy.threshold=0.9,0.7,0.5 answers at each of these values of a field of --config, and
tells accuracy against tokens per forward: with 95 % intervals, the best value had one known it
for each problem (oracle), AUP, and PBx over all tasks.

--suite=quick (or full) --out=DIR does such a sweep, of thresholds if the checkpoint denoises, and
writes DIR/report.html and DIR/results.json: curves with intervals, costs and energy, hardware,
versions, seeds. --task, --size, --config and --sweep change what is asked and how. Then
experiments/compare.py joins several of them.

--harness=TASKS runs tasks of lm-evaluation-harness (pip install 'dlm[eval]'), by name or pattern:

python experiments/evaluate.py --checkpoint=DIR --harness=local_choice,local_sums,local_text

--include_path=FOLDER adds YAML tasks of your own; --shots, --size, --chat, --config and --out mean
what they mean above. --estimator is exact_count, monte_carlo, llada or chain, and --draws (128) the
forwards of a likelihood: `dlm.evaluation.answer_likelihood` tells them apart.

Without --task, --out=RESULTS.json keeps the likelihood, too.

With --distributed several processes share batches, problems and their grading out, each on its own
devices; process 0 tells the results.
"""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags

from dlm import build, command, files, masks, parallel, roofline, waiting
from dlm.completions import conversed
from dlm.data import SPLITS
from dlm.data.install import require
from dlm.evaluation import comparison, energy, joined, likelihood, parallelism, report, tasks
from dlm.evaluation.parallelism import Outcome
from dlm.evaluation.respond import Responder
from dlm.generate import Completion, Generator, Request, generator, shared_out, wasted
from dlm.seeds import check_seed
from dlm.types import Batch, Params

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Of training, a Hugging Face directory, FILE.gguf or package:NAME."
)
CONFIG = flags.DEFINE_string(
  "config", None, "Whose data to take, or how to sample: FILE.py or FILE.py:ARGUMENT."
)
ADAPTER = flags.DEFINE_string("adapter", None, "Of the checkpoint, in PEFT's layout.")
STEP = flags.DEFINE_string("step", "best", "best, latest or a number.")
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the training config's sources.")
BATCHES = flags.DEFINE_integer("batches", 32, "How many batches of rows.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 0, "Rows a batch; 0: as in training.", lower_bound=0)
DRAWS = flags.DEFINE_integer("draws", 1, "Noise draws for each row.", lower_bound=1)
ESTIMATOR = flags.DEFINE_string("estimator", "auto", "auto, training, or an objective by name.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise, or of the problems.")
TASK = flags.DEFINE_multi_string(
  "task", [], "KIND:NAMES, several times; unknown ones list the known."
)
SIZE = flags.DEFINE_integer("size", 100, "Problems of each task.", lower_bound=1)
OPTIONS = flags.DEFINE_multi_string("option", [], "NAME=VALUE for tasks, a Python literal.")
CHAT = flags.DEFINE_bool("chat", False, "A problem is a message, not a text to continue.")
SHOTS = flags.DEFINE_integer("shots", 0, "Worked examples before each problem.", lower_bound=0)
SAMPLES = flags.DEFINE_integer("samples", 1, "Answers to each problem.", lower_bound=1)
EFFICIENCY = flags.DEFINE_bool(
  "efficiency", False, "Time programs that pass beside the reference, and tell eff@k."
)
SWEEP = flags.DEFINE_string("sweep", None, "FIELD=VALUE,VALUE: a field of --config at each value.")
SUITE = flags.DEFINE_enum("suite", None, ["quick", "full"], "Writes a report into --out.")
NAME = flags.DEFINE_string("name", "", "Of the evaluation, in its report; empty: the checkpoint's.")
HARNESS = flags.DEFINE_list("harness", [], "Tasks of lm-evaluation-harness.")
INCLUDE = flags.DEFINE_multi_string("include_path", [], "Folder of YAML tasks for --harness.")
OUT = flags.DEFINE_string("out", None, "A JSON file of results and answers; of --suite a folder.")

SUITES = {  # tasks, and problems of each
  "quick": (["parallel_bench:copy,reverse,sort,shuffle,latin_square_n4"], 10),
  "full": (["parallel_bench:all"], 100),
}
THRESHOLDS = "policy.threshold=1.0,0.9,0.7,0.5"
TRACED = 96  # positions of a text that is shown as it was written, at most
SCORING_DRAWS = 128  # of --harness, where --draws says nothing: LLaDA's


def text_of(trained: build.Pretrained) -> build.RunConfig:
  """A training config whose data, batch and seed are to be measured."""
  if CONFIG.value is not None:
    run = build.RunConfig.read(CONFIG.value, command.FIELDS.value)
  elif (run := trained.run()) is None:
    raise ValueError(f"{CHECKPOINT.value} was trained on no data known here: give --config")
  return dataclasses.replace(run, batch=BATCH.value or run.batch)


def measure() -> likelihood.Likelihood:
  key = jax.random.key(check_seed(SEED.value, "--seed"))
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  tokenizer, model = trained.tokenizer, trained.model
  run = text_of(trained)
  rows = build.rows(run, tokenizer, SPLIT.value)
  print("".join(f"{line}\n" for line in rows.notes()), end="")
  estimator = build.estimator(trained.objective, tokenizer, ESTIMATOR.value)
  params, step = trained.params(objective=True)
  where = f"{CHECKPOINT.value} step {step}, {SPLIT.value} split"
  print(f"{where}, estimator {estimator}", flush=True)
  with waiting.told("evaluating") as at:

    def batch(index: int) -> Batch:
      at(f"batch {index + 1} of {BATCHES.value}, of {run.batch} rows of {run.data.length} tokens")
      return Batch(*jax.device_put(tuple(rows[index])))

    batches = map(batch, range(BATCHES.value))
    return likelihood.nelbo(estimator, model, params, batches, key, draws=DRAWS.value)


def settings(path: str, sweep: str | None) -> dict[str, build.SamplingConfig]:
  """How to sample: once, or at each value of a sweep."""
  fields = {"": ()}
  if sweep is not None:
    name, equals, values = sweep.partition("=")
    if not (name and equals and values):
      raise ValueError(f"--sweep={sweep} must be FIELD=VALUE,VALUE")
    fields = {f"{name}={value}": (f"{name}={value}",) for value in values.split(",")}
  return {
    setting: build.SamplingConfig.read(path, [*command.FIELDS.value, *own])
    for setting, own in fields.items()
  }


def answer() -> None:
  """Asks the problems of --task."""
  if CONFIG.value is None:
    raise ValueError("--task needs --config, which says how to sample")
  configs = settings(CONFIG.value, SWEEP.value)
  asked = questions(TASK.value, SIZE.value)
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  runs, outcomes = answered(trained, configs, asked)
  curves = tell_curves(outcomes) if SWEEP.value else {}
  if OUT.value and jax.process_index() == 0:
    record = {"checkpoint": CHECKPOINT.value, "problems": how()}
    record |= {"sweep": SWEEP.value, "runs": runs, **curves} if SWEEP.value else runs[0]
    files.write_json(OUT.value, record)


def suite() -> None:
  """Asks the problems of --suite, and writes its report."""
  if OUT.value is None:
    raise ValueError("--suite needs --out, the folder of its report")
  specs, size = SUITES[SUITE.value]
  specs, size = TASK.value or specs, SIZE.value if SIZE.present else size
  trained = build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value)
  causal = isinstance(trained.facts.attention, masks.Causal)
  path = CONFIG.value or f"configs/sample/{'ar' if causal else 'default'}.py"
  policy = build.SamplingConfig.read(path, command.FIELDS.value).policy.name
  swept = SWEEP.value or (THRESHOLDS if policy == "threshold" and not causal else None)
  configs = settings(path, swept)
  asked = questions(specs, size)
  runs, outcomes = answered(trained, configs, asked)
  shapes = jax.tree.leaves(trained.model.abstract())
  record = {
    "suite": SUITE.value,
    "name": NAME.value or pathlib.Path(CHECKPOINT.value).name,
    "checkpoint": CHECKPOINT.value,
    "tasks": specs,
    "problems": how() | {"size": size},
    "vocab": trained.tokenizer.vocab_size,
    "parameter_bytes": sum(each.size * each.dtype.itemsize for each in shapes),
    "sweep": swept,
    **tell_curves(outcomes),
    "runs": runs,
  }
  record["facts"] = [
    *report.here(),
    ("checkpoint", f"{CHECKPOINT.value}, step {runs[0]['step']}"),
    ("parameters", f"{sum(each.size for each in shapes):,}"),
    ("sampling", f"{path}, {swept or 'as it is'}, seed {next(iter(configs.values())).seed}"),
    *energies(runs),
  ]
  if jax.process_index():
    return
  folder = pathlib.Path(OUT.value)
  report.write_report(folder / "report.html", joined.page_of([record]))
  files.write_json(folder / "results.json", record)
  print(folder / "report.html")


def energies(runs: list[dict[str, Any]]) -> list[tuple[str, str]]:
  """What was told of energy, once if it is the same everywhere."""
  told = [run["energy"] for run in runs]
  if len({*told}) == 1:
    return [("energy", told[0])]
  return [(f"energy, {run['setting'] or run['policy']}", run["energy"]) for run in runs]


def questions(specs: list[str], size: int) -> list[tasks.Question]:
  """The problems, each as often as --samples says."""
  options, seed = command.options(OPTIONS.value), check_seed(SEED.value, "--seed")
  return [
    question
    for spec in specs
    for question in tasks.questions(spec, size=size, seed=seed, shots=SHOTS.value, options=options)
    for _ in range(SAMPLES.value)
  ]


def how() -> dict[str, Any]:
  """How problems are put."""
  return {
    "seed": SEED.value, "shots": SHOTS.value, "chat": CHAT.value, "samples": SAMPLES.value,
    "options": command.options(OPTIONS.value),
  }  # fmt: skip


def answered(
  trained: build.Pretrained,
  configs: Mapping[str, build.SamplingConfig],
  asked: list[tasks.Question],
) -> tuple[list[dict[str, Any]], list[Outcome]]:
  """Records and outcomes of every setting."""
  read = functools.lru_cache(maxsize=1)(trained.on)  # once, unless mesh or weights are swept
  runs, outcomes = [], []
  for setting, config in comparison.in_turn(configs.items()):
    found, graded = run(trained, read, config, setting, asked)
    runs.append(found)
    outcomes += graded
  return runs, outcomes


def run(
  trained: build.Pretrained,
  read: Callable[[jax.sharding.Mesh, str], tuple[Params, int]],
  config: build.SamplingConfig,
  setting: str,
  asked: list[tasks.Question],
) -> tuple[dict[str, Any], list[Outcome]]:
  """Answers and results at one setting, told and as a record."""
  sample, own = generator(config, trained)
  if CHAT.value:
    requests = conversed(trained, own, [question.talk for question in asked])
  else:
    requests = [
      Request.from_text(i, question.text, trained.tokenizer, bos=own.bos, **own.room)
      for i, question in enumerate(asked)
    ]
  params, step = read(sample.mesh, own.weights)
  told = f", {setting}" if setting else ""
  print(f"{CHECKPOINT.value} step {step}, {len(asked)} problems{told}", flush=True)
  with waiting.told("compiling"):
    sample.compile(params, [*parallel.share(requests)])
  answering = waiting.told(f"answering {len(asked)} problems{told}")
  with answering, energy.watched(energy.meter()) as usage:
    done = shared_out(sample, params, requests, seed=own.seed)
  scores = graded(asked, done, tasks.Question.score)
  results, record = tasks.results(asked, scores, done, SAMPLES.value), {}
  for task, result in results.items():
    print(f"{task}  {result.describe()}")
  if SAMPLES.value > 1:
    record["pass_at_k"] = tasks.pass_rates(asked, scores, SAMPLES.value)
    for task, rates in record["pass_at_k"].items():
      print(f"{task}  {', '.join(f'pass@{k} {100 * rate:.1f} %' for k, rate in rates.items())}")
  if EFFICIENCY.value:
    right = [i for i, score in enumerate(scores) if score >= 1]
    beside = graded([asked[i] for i in right], [done[i] for i in right], tasks.Question.efficiency)
    told_of = dict(zip(right, beside, strict=True))
    efficient = [told_of.get(i, 0.0) for i in range(len(asked))]
    record["eff_at_k"] = tasks.efficiencies(asked, efficient, SAMPLES.value)
    for task, rates in record["eff_at_k"].items():
      print(f"{task}  {', '.join(f'eff@{k} {rate:.3f}' for k, rate in rates.items())}")
  answers = [
    {"task": q.task, "prompt": c.prompt, "text": c.text, "score": score}
    for q, c, score in zip(asked, done, scores, strict=True)
  ]
  print(usage.describe())
  print(wasted(sum(c.queries for c in done), sum(c.computed for c in done)))
  policy = config.policy.name
  record |= {
    "policy": policy,
    "setting": setting,
    "step": step,
    "config": build.plain(config),
    "tasks": {task: result.record() for task, result in results.items()},
    "cost": cost(trained, sample, usage, requests, done, scores),
    "energy": usage.describe().removeprefix("energy: "),
    "traces": traces(trained, policy, setting, asked, done, scores) if SUITE.value else [],
    "answers": answers,
  }
  outcomes = [
    Outcome(
      policy, setting, q.task, score, len(c.tokens), sum(c.forwards.values()),
      c.seconds / sample.rows,
    )
    for q, c, score in zip(asked, done, scores, strict=True)
  ]  # fmt: skip
  return record, parallelism.by_problem(outcomes, SAMPLES.value)


def graded(
  asked: list[tasks.Question],
  done: list[Completion],
  grade: Callable[[tasks.Question, str, bool], float],
) -> list[float]:
  """Of each answer; every process grades its share."""
  own = parallel.share(zip(asked, done, strict=True))
  return parallel.joined([grade(question, each.text, CHAT.value) for question, each in own])


def cost(
  trained: build.Pretrained,
  sample: Generator,
  usage: energy.Usage,
  requests: list[Request],
  done: list[Completion],
  scores: list[float],
) -> dict[str, Any]:
  """What the answers took; operations are counted from the model's shape, without experts."""
  ran: dict[float, float] = collections.defaultdict(float)  # what ran together took one time
  alone = jax.process_count() == 1  # else several run at a time
  try:
    for request, each in zip(requests, done, strict=True) if alone else ():
      forward = roofline.Forward(1, 1, sample.slots(request), 1, 0)
      operations = roofline.operations(trained.model.config, forward)
      ran[each.seconds] += each.queries * operations
  except ValueError:  # of models that the roofline does not cover
    ran.clear()
  return energy.record(
    usage,
    tokens=sum(len(each.tokens) for each in done),
    right=sum(scores),
    answers=len(done),
    latencies=[each.seconds for each in done],
    batches=[(operations, seconds) for seconds, operations in ran.items()],
    peak=energy.reached_peak() if ran else None,
  )


def traces(
  trained: build.Pretrained,
  policy: str,
  setting: str,
  asked: list[tasks.Question],
  done: list[Completion],
  scores: list[float],
) -> list[dict[str, Any]]:
  """How the first problem of each of two tasks was written, where it is short enough to show."""
  shown: dict[str, dict[str, Any]] = {}
  for question, each, score in zip(asked, done, scores, strict=True):
    if question.task not in shown and len(each.row) <= TRACED and len(shown) < 2:
      found = comparison.trace(
        question.task, policy, setting, each, trained.tokenizer, correct=score >= 1
      )
      shown[question.task] = dataclasses.asdict(found)
  return [*shown.values()]


def tell_curves(outcomes: list[Outcome]) -> dict[str, Any]:
  """Accuracy against tokens per forward of a sweep, told and as a record."""
  points = parallelism.summarise(outcomes)
  best = parallelism.oracle(outcomes)
  print(parallelism.table([*points, *best]))
  by_task: dict[str, list[parallelism.CurvePoint]] = {}
  for point in points:
    by_task.setdefault(point.task, []).append(point)
  areas = {}
  for task, curve in by_task.items():
    areas[task] = parallelism.aup_by_policy(curve)
    for point in curve:
      low, high = point.interval()
      print(
        f"{task}  {point.setting}  {point.accuracy:.1f} % ({low:.1f} to {high:.1f})"
        f" at {point.tpf:.2f} tokens a forward"
      )
    for policy, area in areas[task].items():
      print(f"{task}  {policy}  AUP {area:.1f}")
  levels = parallelism.pbx(points)
  said = (f"PB{level} {'none' if tpf is None else f'{tpf:.2f}'}" for level, tpf in levels.items())
  print(f"all tasks  {', '.join(said)}")
  return {
    "curves": [dataclasses.asdict(p) | {"interval": p.interval()} for p in [*points, *best]],
    "aup": areas,
    "pbx": levels,
  }


def harness() -> None:
  """Runs the tasks of --harness."""
  require("lm_eval", "eval")
  from dlm.evaluation import harness as lm_eval_harness

  seed = check_seed(SEED.value, "--seed")
  config = build.SamplingConfig()
  if CONFIG.value is not None:
    config = build.SamplingConfig.read(CONFIG.value, command.FIELDS.value)
  asked = lm_eval_harness.tasks(HARNESS.value, INCLUDE.value)  # mistakes, before anything is read
  responder = Responder(
    build.pretrained(CHECKPOINT.value, STEP.value, ADAPTER.value),
    config,
    estimator=ESTIMATOR.value,
    draws=DRAWS.value if DRAWS.present else SCORING_DRAWS,
    batch=BATCH.value,
    seed=seed,
  )
  found, model = lm_eval_harness.run(
    responder,
    asked,
    shots=SHOTS.value if SHOTS.present else None,
    size=SIZE.value if SIZE.present else None,
    chat=CHAT.value,
    seed=seed,
  )
  for task, metrics in found["results"].items():
    print(f"{task}  {lm_eval_harness.told(metrics)}")
  print(lm_eval_harness.summary(model.get_model_info()))
  if OUT.value and jax.process_index() == 0:
    files.write_json(OUT.value, lm_eval_harness.record(found, model))


def text() -> None:
  """Measures the likelihood of a text."""
  found = measure()
  error = found.standard_error
  print(f"{found.sequences} sequences, {found.tokens} tokens, {found.draws} draws each")
  print(f"nats/token  {found.nats_per_token:.4f} +- {error:.4f}")
  print(f"bits/token  {found.bits_per_token:.4f} +- {error / math.log(2):.4f}")
  print(f"perplexity  {found.perplexity:.3f} +- {found.perplexity * error:.3f}")
  if OUT.value and jax.process_index() == 0:
    record = {"checkpoint": CHECKPOINT.value, "split": SPLIT.value, "seed": SEED.value}
    files.write_json(OUT.value, record | dataclasses.asdict(found))


ASKED = (TASK, SIZE, OPTIONS, CHAT, SHOTS, SAMPLES, EFFICIENCY, SWEEP)
READS = {  # of each kind of evaluation: what it is called, what does it, flags that not all read
  "with --suite": (suite, (SUITE, NAME, *ASKED)),
  "with --task": (answer, ASKED),
  "with --harness": (harness, (HARNESS, INCLUDE, SHOTS, SIZE, CHAT, ESTIMATOR, DRAWS, BATCH)),
  "without --task": (text, (SPLIT, BATCHES, BATCH, DRAWS, ESTIMATOR)),
}


def main() -> None:
  asked = (SUITE.value, TASK.value, HARNESS.value, True)
  kind = next(kind for kind, given in zip(READS, asked, strict=True) if given)
  command.check_read(kind, {name: read for name, (_, read) in READS.items()})
  if OUT.value and jax.process_index() == 0:  # which writes
    place = files.made_folder if SUITE.value else files.check_place
    place(OUT.value)
  evaluate, _ = READS[kind]
  evaluate()


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,), distributed=True)
