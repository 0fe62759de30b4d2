"""Multiple-choice items scored in batches of a bucket of lengths, against one request at a time.

"a whole run": with compilation, of one program for each bucket, or for each length and number of
answer tokens there is. "compiled": the same buckets, and programs that are there: what batches
alone gain, which is little on a CPU that one row keeps busy.
"""

import dataclasses
import functools
import time

import jax
import numpy as np

from dlm import masks
from dlm.evaluation.answer_likelihood import Answer, AnswerScore, AnswerScorer, Rows, Sets
from dlm.models import Model, ModelConfig, bind
from dlm.types import MaskRule, Params
from experiments.benchmarks.results import Row, Spread, Table, interleaved, rate, ratio

CHOICES = 2


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  items: int
  draws: int
  batch: int
  kinds: tuple[str, ...]  # of KINDS


TINY = Size(
  ModelConfig(vocab=37, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  items=1, draws=4, batch=4, kinds=("full",),
)  # fmt: skip
DEFAULT = Size(  # 8 million parameters, 2 of them an embedding
  ModelConfig(vocab=8192, width=256, layers=8, heads=8, kv_heads=4, head_dim=32, mlp=704),
  items=256, draws=4, batch=32, kinds=("full", "causal"),
)  # fmt: skip
KINDS: dict[str, MaskRule] = {
  "full": masks.Full(),
  "causal": masks.Causal(),
}


@dataclasses.dataclass(frozen=True)
class OwnLength(AnswerScorer):
  """Rows that are no longer than their text, and ask no more than the answer has."""

  def rows(self, prompt: np.ndarray, answer: np.ndarray, plan: Sets) -> Rows:
    slots, n = len(prompt) + len(answer), len(answer)
    made = super().rows(prompt, answer, plan)
    cut = {
      name: getattr(made, name)[:, :slots] for name in ("tokens_RxL", "masked_RxL", "level_RxL")
    }
    cut |= {name: getattr(made, name)[:, :n] for name in ("slot_RxA", "weight_RxA")}
    return made.replace(**cut)


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else DEFAULT
  model = bind(chosen.model)
  params = jax.jit(model.init)(jax.random.key(0))
  answers = items(chosen.items, chosen.model.vocab - 1)
  whole, compiled = [], []
  for name in chosen.kinds:
    scorer = scorer_of(chosen, model, name)
    whole.append(whole_run(name, scorer, params, answers))
    compiled.append(warm(name, scorer, params, answers))
  note = "seconds one request at a time / seconds"
  return [Table("a whole run", note, whole), Table("compiled", note, compiled)]


def scorer_of(size: Size, model: Model, kind: str) -> AnswerScorer:
  attention = KINDS[kind]
  shift = int(isinstance(attention, masks.Causal))
  return AnswerScorer(
    model, size.model.vocab - 1, attention, shift=shift, draws=size.draws, batch=size.batch,
    greedy=False,
  )  # fmt: skip


def items(n: int, mask_id: int) -> list[Answer]:
  """Questions of 12 to 44 random tokens, and two choices of 1 to 4 to each."""
  rng = np.random.default_rng(0)
  found = []
  for _ in range(n):
    question = rng.integers(0, mask_id, rng.integers(12, 45))
    found += [(question, rng.integers(0, mask_id, rng.integers(1, 5))) for _ in range(CHOICES)]
  return found


def one_at_a_time(scorer: AnswerScorer, params: Params, answers: list[Answer]) -> list[AnswerScore]:
  return [score for each in answers for score in scorer(params, [each])]


def whole_run(kind: str, scorer: AnswerScorer, params: Params, answers: list[Answer]) -> Row:
  """Once: what was compiled is compiled."""
  fields = {field.name: getattr(scorer, field.name) for field in dataclasses.fields(scorer)}
  alone = OwnLength(**fields | {"batch": 1})
  began = time.perf_counter()
  batched = scorer(params, answers)
  seconds = time.perf_counter() - began
  began = time.perf_counter()
  single = one_at_a_time(alone, params, answers)
  apart = time.perf_counter() - began
  _check_equal(batched, single)
  shapes = {(len(prompt) + len(answer), len(answer)) for prompt, answer in answers}
  return {
    "speed-up": Spread.of([apart / seconds]),
    "attention": kind,
    "requests": len(answers),
    "lengths": len(shapes),
    "seconds": seconds,
    "one at a time": apart,
    "forwards/request": sum(score.forwards for score in batched) / len(answers),
  }


def warm(kind: str, scorer: AnswerScorer, params: Params, answers: list[Answer]) -> Row:
  """Rows one by one in the buckets of the batches; what `whole_run` compiled is there."""
  alone = dataclasses.replace(scorer, batch=1)
  seen: dict[tuple[int, ...], Answer] = {}
  for each in answers:
    rows = scorer.rows(*each, scorer.sets(*each))
    seen.setdefault((rows.tokens_RxL.shape[1], rows.slot_RxA.shape[1]), each)
  alone(params, [*seen.values()])  # compiles
  calls = {
    "alone": functools.partial(one_at_a_time, alone, params, answers),
    "batched": functools.partial(scorer, params, answers),
  }
  seconds, found = interleaved(calls, 1)
  _check_equal(found["batched"], found["alone"])
  return {
    "speed-up": ratio(seconds["alone"], seconds["batched"]),
    "attention": kind,
    "requests/s, batched": rate(len(answers), seconds["batched"]),
  }


def _check_equal(first: list[AnswerScore], other: list[AnswerScore]) -> None:
  """RuntimeError where two ways find other numbers."""
  for a, b in zip(first, other, strict=True):
    if abs(a.log_likelihood - b.log_likelihood) > 1e-4 * abs(a.log_likelihood):
      raise RuntimeError(f"scoring: {a} in one way and {b} in another")
