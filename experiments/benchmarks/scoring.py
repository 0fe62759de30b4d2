"""Multiple-choice items scored in batches of a bucket of lengths, against one request at a time.

Both use one estimator, tell whether an answer is what decoding writes, and find the same numbers.
One at a time, the forwards of a request run one after the other ("1 row"), or side by side in a
batch of as many as a request has at most ("its rows").
"""

import dataclasses
import functools

import jax
import numpy as np

from dlm import masks
from dlm.evaluation.answer_likelihood import Answer, AnswerScore, AnswerScorer
from dlm.models import ModelConfig, bind
from dlm.types import MaskRule, Params
from experiments.benchmarks.results import Row, Table, interleaved, rate, ratio

CHOICES = 4


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  items: int
  draws: int
  batch: int
  rounds: int
  kinds: tuple[str, ...]  # of KINDS


TINY = Size(
  ModelConfig(vocab=37, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  items=2, draws=4, batch=4, rounds=1, kinds=("full",),
)  # fmt: skip
DEFAULT = Size(  # 10 million parameters, 4 of them an embedding
  ModelConfig(vocab=8192, width=256, layers=8, heads=8, kv_heads=4, head_dim=32, mlp=704),
  items=256, draws=8, batch=32, rounds=2, kinds=("full", "blocks of 8", "causal"),
)  # fmt: skip
KINDS: dict[str, MaskRule] = {
  "full": masks.Full(),
  "blocks of 8": masks.BlockCausal(8),
  "causal": masks.Causal(),
}


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else DEFAULT
  model = bind(chosen.model)
  params = jax.jit(model.init)(jax.random.key(0))
  mask_id = chosen.model.vocab - 1
  answers = items(chosen.items, mask_id)
  rows = []
  for name in chosen.kinds:
    attention = KINDS[name]
    shift = int(isinstance(attention, masks.Causal))
    scorer = AnswerScorer(
      model, mask_id, attention, shift=shift, draws=chosen.draws, batch=chosen.batch
    )
    rows += _measured(name, scorer, params, answers, chosen)
  return [Table("scoring", "seconds one request at a time / seconds", rows)]


def items(n: int, mask_id: int) -> list[Answer]:
  """Questions of 12 to 44 random tokens, and four choices of 1 to 6 to each."""
  rng = np.random.default_rng(0)
  found = []
  for _ in range(n):
    question = rng.integers(0, mask_id, rng.integers(12, 45))
    found += [(question, rng.integers(0, mask_id, rng.integers(1, 7))) for _ in range(CHOICES)]
  return found


def _measured(
  kind: str, scorer: AnswerScorer, params: Params, answers: list[Answer], size: Size
) -> list[Row]:
  def one_at_a_time(rows: int) -> list[AnswerScore]:
    alone = dataclasses.replace(scorer, batch=rows)
    return [score for each in answers for score in alone(params, [each])]

  most = max(len(scorer.sets(*each).masked_Dxn) for each in answers)
  calls = {"1 row": functools.partial(one_at_a_time, 1)}
  if most > 1:
    calls["its rows"] = functools.partial(one_at_a_time, most)
  calls["batched"] = functools.partial(scorer, params, answers)
  seen: dict[tuple[int, ...], Answer] = {}
  for each in answers:
    rows = scorer.rows(*each, scorer.sets(*each))
    seen.setdefault((rows.tokens_RxL.shape[1], rows.slot_RxA.shape[1]), each)
  for rows in {1, most, size.batch}:  # compiles
    dataclasses.replace(scorer, batch=rows)(params, [*seen.values()])
  seconds, found = interleaved(calls, size.rounds)
  _check_equal(found)
  return [
    {
      "speed-up": ratio(seconds[name], seconds["batched"]),
      "attention": kind,
      "against": name,
      "requests/s, batched": rate(len(answers), seconds["batched"]),
      "forwards/request": sum(score.forwards for score in found["batched"]) / len(answers),
    }
    for name in calls
    if name != "batched"
  ]


def _check_equal(found: dict[str, list[AnswerScore]]) -> None:
  """RuntimeError where a way finds other numbers than the first."""
  first, *others = found.values()
  for other in others:
    for a, b in zip(first, other, strict=True):
      if abs(a.log_likelihood - b.log_likelihood) > 1e-4 * abs(a.log_likelihood):
        raise RuntimeError(f"scoring: {a} in one way and {b} in another")
