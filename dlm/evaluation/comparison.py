"""One set of problems, many samplers: graded outcomes, traces and fillings for the report."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from dlm.data import Example, Source, Tokenizer
from dlm.evaluation import parallelism
from dlm.evaluation.parallelism import Outcome
from dlm.evaluation.report import Filled, Filling, Infill, Trace, exact_characters
from dlm.evaluation.tasks.lists import grade
from dlm.generate import Completion, Generator, Request
from dlm.types import Params

# Samplers whose programs are kept at a time. On CPU each holds 220 to 830 memory maps for every
# canvas size, and Linux allows a process 65,530: more of them end it inside the compiler.
LIVE = 16
T = TypeVar("T")


def in_turn(settings: Iterable[T]) -> Iterator[T]:
  """Settings one after the other; after every LIVE of them the process's programs are dropped."""
  for index, setting in enumerate(settings):
    if index and index % LIVE == 0:
      jax.clear_caches()
    yield setting


@dataclasses.dataclass(frozen=True)
class Problem:
  """A request, and how well a completion answers it, in [0, 1]."""

  task: str
  request: Request
  score: Callable[[Completion], float]


@dataclasses.dataclass(frozen=True)
class Setting:
  """A policy by name, its parameters in words, and the generator that runs it."""

  policy: str
  setting: str
  generator: Generator


def list_problems(
  task: str, source: Source, n: int, tokenizer: Tokenizer, *, first_id: int, max_new_tokens: int
) -> list[Problem]:
  """The first `n` items of a list source of that task."""
  return [_list_problem(task, source[i], first_id + i, tokenizer, max_new_tokens) for i in range(n)]


def _list_problem(
  task: str, example: Example, id: int, tokenizer: Tokenizer, max_new_tokens: int
) -> Problem:
  prompt = tokenizer.encode(example.prompt)
  request = Request.from_text(
    id,
    example.prompt,
    tokenizer,
    slots=len(prompt) + max_new_tokens,
    max_new_tokens=max_new_tokens,
  )
  return Problem(task, request, lambda completion: grade(example, completion.text))


@dataclasses.dataclass(frozen=True)
class Hole:
  """An excerpt with a hole; by position, so that a byte-level model's blocks can be aimed at."""

  before: str
  truth: str
  after: str


def holes(source: Source, seen: Source, n: int, *, start: int, size: int, end: int) -> list[Hole]:
  """`n` excerpts of `end` characters, their hole at [start, start + size), spread over a source.

  Excerpts are plain ASCII without line breaks, begin at a word and stand nowhere in `seen`, the
  training text: manuals repeat themselves. Holes are letters within a word.
  """
  taught = "\n".join(seen[i].completion for i in range(len(seen)))
  found = []
  for text in (source[i].completion for i in range(len(source))):
    for at in (i + 1 for i, c in enumerate(text) if c == " " and text[i + 1 : i + 2].isalpha()):
      excerpt = text[at : at + end]
      plain = len(excerpt) == end and excerpt.isascii() and excerpt.isprintable()
      inside = excerpt[start - 1 : start + size + 1].isalpha()
      if plain and inside and "  " not in excerpt and excerpt not in taught:
        truth, after = excerpt[start : start + size], excerpt[start + size :]
        found.append(Hole(excerpt[:start], truth, after))
  if len(found) < n:
    raise ValueError(f"holes: {source.name} offers {len(found)} excerpts, fewer than {n}")
  return [found[i * len(found) // n] for i in range(n)]


def hole_problem(hole: Hole, id: int, tokenizer: Tokenizer) -> Problem:
  """Scored by the share of characters at their place; tokens must be bytes, one a character."""
  tokens = tokenizer.encode(hole.before + hole.truth + hole.after)
  slot = np.arange(len(tokens))
  free = (slot >= len(hole.before)) & (slot < len(hole.before) + len(hole.truth))
  tokens = np.where(free, tokenizer.mask_id, tokens).astype(np.int32)
  request = Request(id, f"{hole.before}[[{len(hole.truth)}]]{hole.after}", tokens, free)
  return Problem("infill", request, lambda done: exact_characters(hole.truth, done.spans[0]) / 100)


def compare(
  settings: Sequence[Setting], params: Params, problems: Sequence[Problem], *, seed: int
) -> tuple[list[Outcome], dict[tuple[str, str], list[Completion]]]:
  """Every setting on every problem; completions by (policy, setting), in the problems' order."""
  outcomes, completions = [], {}
  requests = [problem.request for problem in problems]
  for setting in in_turn(settings):
    done = setting.generator(params, requests, seed=seed)
    completions[setting.policy, setting.setting] = done
    for problem, completion in zip(problems, done, strict=True):
      outcomes.append(
        Outcome(
          policy=setting.policy,
          setting=setting.setting,
          task=problem.task,
          score=problem.score(completion),
          n_tokens=len(completion.tokens),
          n_forwards=sum(completion.forwards.values()),
          seconds=completion.seconds / setting.generator.rows,
        )
      )
  return outcomes, completions


def trace(
  sample: str,
  policy: str,
  setting: str,
  done: Completion,
  tokenizer: Tokenizer,
  correct: bool | None = None,
) -> Trace:
  """How a completion was written, position by position. `correct`: None: nothing to grade."""
  return Trace(
    sample=sample,
    policy=policy,
    setting=setting,
    tokens=tuple(tokenizer.decode(np.array([t]), show_mask=True) for t in done.row),
    when=tuple(done.when),
    forwards=sum(done.forwards.values()),
    correct=correct,
  )


def infill(sample: str, hole: Hole, completions: dict[tuple[str, str], Completion]) -> Infill:
  """What each setting wrote into one hole."""
  filled = tuple(
    Filled(policy, setting, done.spans[0], done.tpf)
    for (policy, setting), done in completions.items()
  )
  return Infill(sample, hole.before, hole.truth, hole.after, filled)


def fillings(
  holes: Sequence[Hole], completions: dict[tuple[str, str], list[Completion]]
) -> tuple[Filling, ...]:
  """All holes by each setting, below the best constant guess: one letter for every place."""
  truths = [hole.truth for hole in holes]
  letter = collections.Counter("".join(truths)).most_common(1)[0][0]
  constant = [letter * len(truth) for truth in truths]
  rows = [_filling(f'always "{letter}"', "baseline", truths, constant, None)]
  for (policy, setting), done in completions.items():
    counts = ((len(each.tokens), sum(each.forwards.values())) for each in done)
    tpf = parallelism.tokens_per_forward(counts)[0]
    rows.append(_filling(policy, setting, truths, [d.spans[0] for d in done], tpf))
  return tuple(rows)


def _filling(
  policy: str, setting: str, truths: Sequence[str], texts: Sequence[str], tpf: float | None
) -> Filling:
  n, pairs = len(truths), list(zip(truths, texts, strict=True))
  return Filling(
    policy,
    setting,
    characters=sum(exact_characters(*pair) for pair in pairs) / n,
    whole=100 * sum(truth == text for truth, text in pairs) / n,
    tpf=tpf,
    n=n,
  )
