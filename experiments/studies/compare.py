"""Every decoding method on one model: accuracy against tokens per forward, one curve a method.

python -m experiments.studies.compare --checkpoint=runs/demo/model --workdir=runs/compare

The checkpoint must have been trained on list problems (configs/train/demo.py, lists_bd3lm.py, ...):
held-out problems of its own tasks are what is asked. Prints a table, writes report.html.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
from absl import flags

from dlm import build, command
from dlm.data import open_source
from dlm.evaluation import comparison, parallelism, report
from dlm.evaluation.comparison import Problem, Setting
from dlm.generate import generator

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A checkpoint trained on list problems.")
WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Where the page goes.")
PROBLEMS = flags.DEFINE_integer("problems", 32, "Held-out problems a task.", lower_bound=1)
METHODS = flags.DEFINE_list("methods", [], "Names of the table below; empty: all.")

LIST_FIELDS = ("form", "items", "alphabet")


@dataclasses.dataclass(frozen=True)
class Method:
  """A curve: one policy and cache at several settings of one field."""

  policy: dict[str, Any]
  field: str
  values: tuple
  cache: str = "none"


SCHEDULE = {"name": "fixed", "k": 1}
CONFIDENCES = (0.95, 0.8, 0.6)
CURVES: dict[str, Method] = {
  "LLaDA": Method({"name": "fixed"}, "k", (1, 2, 4)),
  "random order": Method({"name": "fixed", "order": "random"}, "k", (1, 2, 4)),
  "margin": Method({"name": "fixed", "order": "margin"}, "k", (1, 2, 4)),
  "entropy": Method({"name": "fixed", "order": "entropy"}, "k", (1, 2, 4)),
  "left to right": Method({"name": "left_to_right"}, "k", (1, 2, 4)),
  "Dream, entropy": Method({"name": "dream", "alg": "entropy"}, "steps", (8, 4, 2)),
  "threshold": Method({"name": "threshold"}, "threshold", CONFIDENCES),
  "threshold, dual cache": Method({"name": "threshold"}, "threshold", CONFIDENCES, "dual"),
  "threshold, prefix cache": Method({"name": "threshold"}, "threshold", CONFIDENCES, "prefix"),
  "factor": Method({"name": "factor"}, "factor", (0.5, 1.0, 1.5)),
  "entropy bound": Method({"name": "entropy_bounded"}, "budget", (0.1, 0.3, 1.0)),
  "CD4LM": Method({"name": "cad"}, "threshold", CONFIDENCES),
  "Saber": Method({"name": "saber"}, "n", (1, 2, 4)),
  "Prophet": Method(
    {"name": "prophet", "answer_start": 0, "steps": 8, "mid": 8.0, "late": 8.0, "inner": SCHEDULE},
    "early",
    (20.0, 10.0, 5.0),
  ),
  "hierarchy": Method({"name": "hierarchy", "low": 0.3}, "threshold", CONFIDENCES),
  "credit": Method(
    {"name": "credit", "inner": {"name": "threshold"}}, "inner.threshold", CONFIDENCES
  ),
  "ETE": Method({"name": "ete"}, "threshold", CONFIDENCES),
}


def with_field(policy: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
  """The policy's table with one more field; a dotted one is of a policy inside."""
  head, _, rest = field.partition(".")
  return policy | {head: with_field(policy[head], rest, value) if rest else value}


def settings(trained: build.Pretrained, names: list[str]) -> list[Setting]:
  unknown = [name for name in names if name not in CURVES]
  if unknown:
    raise ValueError(f"--methods={unknown[0]!r} is unknown; known: {', '.join(CURVES)}")
  found = []
  for name in names or CURVES:
    method = CURVES[name]
    for value in method.values:
      policy = with_field(method.policy, method.field, value)
      config = {"policy": policy, "cache": {"name": method.cache}, "batch": 32}
      made, _ = generator(config, trained)
      found.append(Setting(name, f"{method.field} {value}", made))
  return found


def problems(trained: build.Pretrained, n: int) -> list[Problem]:
  """`n` held-out problems of every task that the model was trained on."""
  run = trained.run()
  sources = () if run is None else run.data.sources
  lists = [dict(source[2]) for source in sources if source[0] == "lists" and len(source) > 2]
  if not lists:
    raise ValueError(f"{trained.directory} was not trained on list problems; sources={sources}")
  options = {key: value for key, value in lists[0].items() if key in LIST_FIELDS}
  found = []
  for task in dict.fromkeys(lists[0]["tasks"]):
    source = open_source("lists", "test", tasks=(task,), **options)
    longest = max(len(trained.tokenizer.encode(source[i].completion)) for i in range(n))
    found += comparison.list_problems(
      task, source, n, trained.tokenizer, first_id=len(found), max_new_tokens=longest + 1
    )
  return found


def main() -> None:
  began = time.perf_counter()
  trained = build.pretrained(CHECKPOINT.value)
  asked = problems(trained, PROBLEMS.value)
  compared = settings(trained, METHODS.value)
  workdir = pathlib.Path(WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  params, step = trained.params()
  print(
    f"{len(compared)} settings of {len(METHODS.value or CURVES)} methods, {len(asked)} problems"
  )
  outcomes, _ = comparison.compare(compared, params, asked, seed=0)
  points = parallelism.summarise(outcomes)
  means = parallelism.mean_over_tasks(points)
  print(parallelism.table([*means, *points]))
  page = report.Report(
    title="Decoding methods on one model",
    sentence=f"{CHECKPOINT.value}, step {step}: {PROBLEMS.value} held-out problems a task, "
    "temperature 0, the same weights for every method.",
    vocab=trained.tokenizer.vocab_size,
    facts=(("device", jax.devices()[0].device_kind), ("date", time.strftime("%Y-%m-%d"))),
    curves=(*means, *points),
  )
  report.write_report(workdir / "report.html", page)
  print(f"{workdir / 'report.html'}, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  command.run(main, required=(CHECKPOINT,))
