"""Ragged rows: query positions that are computed for each that a row needs, and what that costs.

Rows of many lengths end at different times, and where a cache is approximate they need their whole
canvas at different times. "whole batches" computes all rows at the full width whenever one needs it
(`positions=0`); "gathered" is what the sampler does here by itself (`dlm.build`). Same rows, same
model, random parameters, greedy (but for random ids of cache "text"); in one process, in turns.
Positions are counted over several batches; a row's tokens there are the same if it wrote them in
both ways and alone, by the same program as in its batch.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np

from dlm import masks, parallel
from dlm.build.sampling import POSITIONS
from dlm.data import ByteTokenizer
from dlm.generate import Completion, Generator, Request
from dlm.models import GemmaConfig, ModelConfig, MoeConfig, bind
from dlm.sampling import policies
from dlm.sampling.caching import PLANS
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.serving.offline import Offline
from dlm.types import Params
from experiments.benchmarks.results import Row, Spread, Table, interleaved, rate, ratio

BYTES = ByteTokenizer()
POSITIONS = {"whole batches": 0, "gathered": POSITIONS[jax.default_backend() == "cpu"]}


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  slots: int  # of the canvas of a batch; rows are longer than half of it
  block: int
  counted: tuple[str, ...]  # caches whose positions are counted
  rows: int  # of a batch in which they are
  batches: int
  timed: tuple[int, ...]  # rows of dual cache
  prompts: int  # of a mixed file; 0: no such table
  rounds: int


def _model(**sizes: int) -> ModelConfig:
  return ModelConfig(vocab=BYTES.vocab_size, **sizes)


TINY = Size(
  _model(width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  slots=32, block=8, counted=("dual",), rows=4, batches=1, timed=(4,), prompts=0, rounds=1,
)  # fmt: skip
DEFAULT = Size(
  _model(width=512, layers=4, heads=8, kv_heads=8, head_dim=64, mlp=2048),
  slots=128, block=16, counted=tuple(PLANS), rows=16, batches=3, timed=(4, 16),
  prompts=24, rounds=3,
)  # fmt: skip
SMALL = _model(width=64, layers=1, heads=2, kv_heads=1, head_dim=32, mlp=64)
# Cache "text" is for models of this kind alone.
GEMMA = _model(
  width=64, layers=2, heads=2, kv_heads=1, head_dim=32, mlp=64, qk_norm=True,
  moe=MoeConfig(experts=4, per_token=2, mlp=32, renormalise=True),
  gemma=GemmaConfig(full=(1,), window=32, kv_heads=1, head_dim=32),
)  # fmt: skip


def methods(block: int) -> dict[str, tuple[Policy, CachePlan]]:
  """Caches that go with one policy, and that policy."""
  return {
    "dkv_greedy": (policies.Planned(steps=block // 2), PLANS["dkv_greedy"]()),
    "rolling": (policies.Introspective(4), PLANS["rolling"]()),
    "ahead": (policies.Pipelined(block, 0.6, begin=0.3, eager=0.6), PLANS["ahead"]()),
    "sub_block": (
      policies.Parts(policies.Threshold(0.6), block // 2),
      PLANS["sub_block"](block // 2),
    ),
    "text": (policies.Renoise(BYTES.vocab_size, steps=block // 2), PLANS["text"]()),
  }


def run(size: str) -> Iterator[Table]:
  chosen = TINY if size == "tiny" else DEFAULT
  yield Table("dual cache", "seconds in whole batches / seconds", _dual(chosen))
  if chosen.prompts:
    note = "seconds in whole batches / seconds, a file of prompts"
    yield Table("mixed prompts", note, _mixed(chosen))
  counted = dataclasses.replace(chosen, model=SMALL) if size == "default" else chosen
  yield Table("positions", "computed / needed: whole batches over gathered", _counts(counted))


def _params(model: ModelConfig) -> Params:
  """Random and sure of itself: confidences spread over (0, 1), as thresholds need."""
  params = jax.jit(bind(model).init)(jax.random.key(0))
  return params | {"final_norm": {"scale": 6 * params["final_norm"]["scale"]}}


def generator(size: Size, cache: str, way: str, batch: int) -> Generator:
  policy, plan = methods(size.block).get(cache) or (policies.Threshold(0.6), PLANS[cache]())
  sees = {"text": masks.Canvas(size.block)}.get(cache, masks.Full())
  if cache in ("block", "sub_block", "ahead", "rolling"):
    sees = masks.Causal()
  sampler = Sampler(
    bind(size.model),
    policy,
    plan,
    sees,
    block=policy.draft_span or size.block,
    max_forwards=10_000,
    mask_id=BYTES.mask_id,
    shift=int(cache == "rolling"),
    commit="separate" if cache == "text" else "fused",
    positions=POSITIONS[way],
  )
  mesh = parallel.make_mesh(data=1, devices=jax.local_devices()[:1])
  return Generator(sampler, BYTES, mesh, align="prompt", batch=batch)


def requests(
  count: int, least: int, most: int, new: tuple[int, int], seed: int = 0
) -> list[Request]:
  """Rows of `least` to `most` tokens, of which some are to be written."""
  rng, made = np.random.default_rng(seed), []
  for i in range(count):
    length, open_ = rng.integers(least, most + 1), rng.integers(new[0], new[1] + 1)
    ids = rng.integers(0, 256, length - open_).astype(np.int32)
    made.append(Request.from_ids(i, "", ids, BYTES.mask_id, slots=most, max_new_tokens=int(open_)))
  return made


def ragged(size: Size, rows: int, seed: int = 0) -> list[Request]:
  new = size.slots // 8, size.slots // 2
  return requests(rows, size.slots // 2 + 1, size.slots, new, seed)


def waste(done: list[Completion]) -> float:
  return sum(c.computed for c in done) / sum(c.queries for c in done)


def _counts(size: Size) -> list[Row]:
  return [_counted(size, cache) for cache in size.counted]


def _counted(size: Size, cache: str) -> Row:
  own = dataclasses.replace(size, model=GEMMA) if cache == "text" else size
  params, same = _params(own.model), []
  make = {way: generator(own, cache, way, own.rows) for way in POSITIONS}
  found: dict[str, list[float]] = {way: [] for way in POSITIONS}
  for seed in range(own.batches):
    asked = ragged(own, own.rows, seed)
    done = {way: make[way](params, asked) for way in POSITIONS}
    for way in POSITIONS:
      found[way].append(waste(done[way]))
    alone = [make["gathered"](params, [each])[0] for each in asked]
    ways = zip(*done.values(), alone, strict=True)
    same += [a.row == b.row == c.row for a, b, c in ways]
  return {
    "ratio": ratio(found["whole batches"], found["gathered"]),
    "cache": cache,
    **{way: Spread.of(each) for way, each in found.items()},
    "rows": own.rows,
    "same tokens": float(np.mean(same)),
  }


def _dual(size: Size) -> list[Row]:
  params, rows = _params(size.model), []
  for count in size.timed:
    calls, asked = {}, ragged(size, count)
    for way in POSITIONS:
      made = generator(size, "dual", way, count)
      made.compile(params, asked)
      calls[way] = functools.partial(made, params, asked)
    rows += _compared(f"{count} rows", calls, size.rounds)
  return rows


def _mixed(size: Size) -> list[Row]:
  """Prompts of all lengths over the engine, as `experiments/sample.py` runs a file of them."""
  params, calls = _params(size.model), {}
  asked = requests(size.prompts, size.slots // 4, 2 * size.slots, (size.block, size.slots // 4))
  for way in POSITIONS:
    served = Offline(generator(size, "none", way, 8))
    calls[way] = functools.partial(served.engine(params, asked).run, served.asks(asked, 0))
  return _compared(f"{size.prompts} prompts", calls, size.rounds)


def _compared(case: str, calls: dict, rounds: int) -> list[Row]:
  seconds, done = interleaved(calls, rounds)
  base = next(iter(calls))
  return [
    {
      "speed-up": ratio(seconds[base], seconds[way]),
      "case": f"{case}, {way}",
      "tokens/s": rate(sum(len(c.tokens) for c in done[way]), seconds[way]),
      "computed / needed": waste(done[way]),
      "same tokens": float(
        np.mean([a.row == b.row for a, b in zip(done[base], done[way], strict=True)])
      ),
    }
    for way in calls
  ]
