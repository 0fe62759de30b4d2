"""Tasks whose answers a program can judge, on problems that are held out.

  lists:copy,sort                  list problems (`dlm.data.sources.lists`)
  parallel_bench:copy,sudoku_n4_12 of ParallelBench made anew (`dlm.data.sources.parallel_bench`)
  reasoning_gym:chain_sum,gcd      of the package reasoning-gym, by its own scorers
  published:gsm8k,humaneval        from files that lie here (`published.py` names them)

A problem is put to a model as a message, or as text that it continues, after worked examples if
some are wanted: those are of the split that training sees.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dlm.data import Example, open_source
from dlm.data.chat import Conversation, Message
from dlm.data.sources.gym import MESSAGE
from dlm.data.sources.parallel_bench import BENCHMARK
from dlm.evaluation.tasks import answers, code, efficiency, gym, lists, parallel_bench, published
from dlm.evaluation.tasks.kind import Kind
from dlm.generate import Completion

KINDS = {
  "lists": Kind(lists.grade, "{prompt}", "{prompt}", "{completion}", "\n"),
  "parallel_bench": Kind(
    parallel_bench.grade, "{prompt}", "{prompt}Answer:\n", "{completion}", "\n\n"
  ),
  "reasoning_gym": Kind(
    gym.grade, MESSAGE, "{prompt}", "{completion}", "\n\n", gym.check, reply="{answer}"
  ),
}


@dataclasses.dataclass(frozen=True)
class Question:
  """A problem of a task, and the worked examples that stand before it."""

  task: str
  kind: Kind
  example: Example
  shown: tuple[Example, ...] = ()

  @property
  def text(self) -> str:
    """To be continued."""
    kind = self.kind
    worked = (f"{_said(kind.text + kind.answer, each)}{kind.end}" for each in self.shown)
    return "".join([*worked, _said(kind.text, self.example)])

  @property
  def talk(self) -> Conversation:
    """To be answered; worked examples are earlier turns."""
    said: list[Message] = []
    for each in self.shown:
      said.append({"role": "user", "content": _said(self.kind.message, each)})
      said.append({"role": "assistant", "content": _said(self.kind.reply, each)})
    said.append({"role": "user", "content": _said(self.kind.message, self.example)})
    return Conversation(said)

  def score(self, text: str, chat: bool) -> float:
    """Of what a model wrote; to a text that it continues, up to the end of an answer."""
    kind = self.kind
    grade = kind.grade if chat else kind.continued or kind.grade
    return grade(self.example, self._answer(text, chat))

  def efficiency(self, text: str, chat: bool) -> float:
    """Of the program that a model wrote, beside the reference: see `tasks.efficiency`.

    ValueError where the task asks for no program.
    """
    if self.kind.program is None:
      raise ValueError(f"{self.task} asks for no program, whose efficiency could be measured")
    return efficiency.beside(*self.kind.program(self.example, self._answer(text, chat), chat))

  def _answer(self, text: str, chat: bool) -> str:
    if chat:
      return text
    if self.kind.stops is None:
      return text.strip(" ").partition(self.kind.end)[0]
    return answers.cut_at_stops(text, self.kind.stops)


def _said(form: str, example: Example) -> str:
  fields = {**example.meta, "prompt": example.prompt, "completion": example.completion}
  return form.format_map(fields)


def questions(
  spec: str,
  *,
  size: int,
  seed: int = 0,
  shots: int = 0,
  options: Mapping[str, Any] | None = None,
) -> list[Question]:
  """`size` held-out problems of each task of `KIND:TASK,TASK`, fewer if a task has no more.

  Args:
    shots: worked examples before each.
    options: of the source: `dlm.data.sources`.
  """
  name, _, tasks = spec.partition(":")
  if name not in (*KINDS, "published") or not tasks:
    known = ", ".join(f"{kind}:NAMES" for kind in (*KINDS, "published"))
    raise ValueError(f"unknown task {spec!r}; known: {known}")
  if (name, tasks) == ("parallel_bench", "all"):
    tasks = ",".join(BENCHMARK)
  found = []
  for task in tasks.split(","):
    if name == "published":
      kind, asked, shown = published.read(task, size=size, shots=shots, **(options or {}))
    else:
      kind = KINDS[name]
      asked = _examples(name, task, tasks, "test", seed, size, options or {})
      shown = _examples(name, task, tasks, "train", seed, shots, options or {}) if shots else []
    for example in asked:
      kind.check(example)
      found.append(Question(task, kind, example, tuple(shown)))
  return found


def _examples(
  name: str, task: str, tasks: str, split: str, seed: int, size: int, options: Mapping[str, Any]
) -> list[Example]:
  if name == "lists":
    source = open_source("lists", split, seed=seed, tasks=(task,), **options)
    return [source[i] for i in range(min(size, len(source)))]
  others = {*tasks.split(",")} - {task}
  own = {key: value for key, value in options.items() if key not in others}
  source = open_source(f"{name}:{task}", split, seed=seed, size=size, **own)
  return [source[i] for i in range(len(source))]


@dataclasses.dataclass(frozen=True)
class Result:
  """Of one task: how many answers are right, and what they cost."""

  n: int
  right: float  # sum of the scores
  ended: int  # by a stop id
  tokens: int
  forwards: int
  samples: int = 1  # answers to each problem; n counts all of them

  @property
  def accuracy(self) -> float:
    return self.right / self.n

  @property
  def standard_error(self) -> float | None:
    """Of the accuracy over problems, at most; None: there is one alone."""
    p, problems = self.accuracy, self.n // self.samples
    return math.sqrt(p * (1 - p) / (problems - 1)) if problems > 1 else None

  @property
  def tokens_per_forward(self) -> float:
    return self.tokens / max(self.forwards, 1)

  def describe(self) -> str:
    """For the screen."""
    spread = "" if self.standard_error is None else f" +- {100 * self.standard_error:.1f}"
    return (
      f"{100 * self.accuracy:.1f}{spread} % of {self.n} right, {self.ended} ended by themselves, "
      f"{self.tokens_per_forward:.2f} tokens a forward"
    )

  def record(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {
      "accuracy": self.accuracy,
      "standard_error": self.standard_error,
      "tokens_per_forward": self.tokens_per_forward,
    }


def results(
  asked: Sequence[Question],
  scores: Iterable[float],
  completions: Sequence[Completion],
  samples: int = 1,
) -> dict[str, Result]:
  """By task, in order of first appearance. `samples`: so often was each problem asked."""
  groups: dict[str, list[tuple[float, Completion]]] = {}
  for question, score, completion in zip(asked, scores, completions, strict=True):
    groups.setdefault(question.task, []).append((score, completion))
  return {
    task: Result(
      n=len(group),
      right=sum(score for score, _ in group),
      ended=sum(done.reason == "stop_id" for _, done in group),
      tokens=sum(len(done.tokens) for _, done in group),
      forwards=sum(sum(done.forwards.values()) for _, done in group),
      samples=samples,
    )
    for task, group in groups.items()
  }


def pass_rates(
  asked: Sequence[Question], scores: Sequence[float], samples: int
) -> dict[str, dict[int, float]]:
  """pass@k by task and k (1, 10, 100 and `samples`), of questions that were asked so many times.

  `asked` and `scores` hold a question's samples side by side; a full score is right.
  """

  def rate(own: Sequence[float], k: int) -> float:
    return code.pass_at_k(samples, sum(score >= 1 for score in own), k)

  return _by_k(rate, asked, scores, samples)


def efficiencies(
  asked: Sequence[Question], efficient: Sequence[float], samples: int
) -> dict[str, dict[int, float]]:
  """eff@k by task and k, as `pass_rates`, of `Question.efficiency` of each answer."""
  return _by_k(efficiency.eff_at_k, asked, efficient, samples)


def _by_k(
  rate: Callable[[Sequence[float], int], float],
  asked: Sequence[Question],
  values: Sequence[float],
  samples: int,
) -> dict[str, dict[int, float]]:
  """The mean over a task's questions of `rate` of a question's values and k."""
  found: dict[str, dict[int, list[float]]] = {}
  for start in range(0, len(asked), samples):
    by_k = found.setdefault(asked[start].task, {})
    for k in sorted({1, 10, 100, samples}):
      if k <= samples:
        by_k.setdefault(k, []).append(rate(values[start : start + samples], k))
  return {
    task: {k: sum(rates) / len(rates) for k, rates in by_k.items()} for task, by_k in found.items()
  }
