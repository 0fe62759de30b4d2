"""A row that is served is the row alone: the ids of mixed requests, whoever runs beside them.

Every policy that a block-causal model may be served with, over every cache that is exact for it. A
random model answers the same prompts at temperature 0 and 1: one at a time, then 16 and 64 at a
time while a fifth is cancelled on the way. `ids` is a hash of all answers: equal ones of two runs,
say on 1 and on 8 devices, are equal token by token.
"""

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dlm import masks
from dlm.data import ByteTokenizer
from dlm.diffusion.schedules import LogLinear
from dlm.generate import Request
from dlm.models import ModelConfig, bind
from dlm.sampling.caching import PLANS, Ahead, ExactBlock, SubBlock
from dlm.sampling.policies import POLICIES, Threshold
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.serving.asks import Ask
from dlm.serving.engine import Engine, Serving
from experiments.benchmarks.load import cancelled
from experiments.benchmarks.results import Row, Spread, Table

BYTES, BLOCK, SLOTS, FILL = ByteTokenizer(), 4, 32, 8
MODEL = bind(
  ModelConfig(vocab=260, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16, tied=False)
)
CANCELLED = 0.2
# What policies take where they have no default, or where theirs would decide one token a forward.
GIVEN: dict[str, Mapping[str, Any]] = {
  "fixed": {"steps": 2},
  "threshold": {"threshold": 0.05},
  "credit": {"inner": Threshold(0.05)},
  "smooth": {"inner": Threshold(0.05, band=1e-5, decay=0.1)},
  "region": {"inner": Threshold(0.05), "first": 1, "last": 3},
  "prophet": {"inner": Threshold(0.05), "steps": 8, "answer_start": 2, "answer_length": 3},
  "parts": {"inner": Threshold(0.05), "size": 2},
  "hierarchy": {"threshold": 0.2, "low": 0.05},
  "dream": {"steps": 4},
  "dream_threshold": {"threshold": 0.05},
  "rnd1": {"steps": 4},
  "ancestral": {"schedule": LogLinear(), "steps": 4},
  "duo": {"vocab": 256, "schedule": LogLinear(), "steps": 4},
  "renoise": {"vocab": 256, "steps": 5},
  "quota": {"block": BLOCK, "steps": 2, "threshold": 0.05},
  "planned": {"steps": 2},
  "running_confidence": {"steps": 4},
  "self_speculative": {"block": BLOCK},
  "dreamon": {"expand_id": 1},
  "indel": {"insert_id": 1, "delete_id": 2, "most": 4, "steps": 3},
  "served_indel": {"insert_id": 1, "delete_id": 2, "most": 3, "ids": 5},
  "pipelined": {"block": BLOCK, "threshold": 0.05},
  "distilled": {"block": BLOCK, "threshold": 0.05},
}
EXACT = (ExactBlock(), SubBlock(2), Ahead())


@dataclasses.dataclass(frozen=True)
class Size:
  prompts: int
  concurrency: tuple[int, ...]
  rows: int
  row_tile: int
  cases: int | None = None  # the first so many; None: all


SIZES = {
  "tiny": Size(6, (1, 4), rows=2, row_tile=1, cases=1),
  "default": Size(200, (1, 16, 64), rows=16, row_tile=8),
}


def run(size: str) -> list[Table]:
  chosen = SIZES[size]
  params = jax.jit(MODEL.init)(jax.random.key(0))
  params = params | {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}
  asks = _asks(chosen.prompts)
  rows = []
  for name, sampler in list(_cases())[: chosen.cases]:
    rows.append(_row(name, sampler, params, asks, chosen))
  return [Table("row alone = row served", "share of the answers that are the same ids", rows)]


def _cases() -> Iterator[tuple[str, Sampler]]:
  """Policy and cache, where they go together."""
  for name, make in POLICIES.items():
    for plan in EXACT:
      try:
        yield f"{name}, {_name(plan)}", _sampler(make(**GIVEN.get(name, {})), plan)
      except ValueError:  # it has no such plan
        continue


def _name(plan: Any) -> str:
  return next(name for name, kind in PLANS.items() if type(plan) is kind)


def _sampler(policy: Policy, plan: Any) -> Sampler:
  return Sampler(
    MODEL, policy, plan, masks.BlockCausal(BLOCK), block=BLOCK, max_forwards=512,
    mask_id=BYTES.mask_id, eos_ids=(45, 232), on_eos="stop_block", forbidden=(256, 257, 258),
  )  # fmt: skip


def _asks(count: int) -> list[Ask]:
  """So many prompts, each at temperature 0 and 1; some begin alike."""
  rng, made = np.random.default_rng(1), []
  shared = rng.integers(97, 123, SLOTS)
  for i in range(count):
    n = int(rng.integers(0, SLOTS - 5))
    prompt = np.concatenate([shared[: n // 2 * (i % 3 > 0)], rng.integers(97, 123, SLOTS)])[:n]
    new = int(rng.integers(1, SLOTS - n - 1))
    request = Request.from_ids(i, "", prompt, BYTES.mask_id, slots=SLOTS, max_new_tokens=new)
    made += [Ask(request, seed=i, temperature=warmth) for warmth in (0.0, 1.0)]
  return made


def _row(name: str, sampler: Sampler, params: Any, asks: Sequence[Ask], size: Size) -> Row:
  parts = {"fill": FILL, "prefixes": 8} if type(sampler.plan) is ExactBlock else {"fill": 0}
  serving = Serving((SLOTS,), rows=size.rows, row_tile=size.row_tile, **parts)
  engine = Engine(sampler, BYTES, params, serving, align="canvas")
  if sampler.spec().chooses:  # it draws nothing
    asks = [ask for ask in asks if not ask.temperature]
  began = time.perf_counter()
  alone, *others = [
    answers(engine, asks, clients, CANCELLED * (clients > 1)) for clients in size.concurrency
  ]
  same = [np.mean([alone[i] == ids for i, ids in each.items()]) for each in others]
  ids = hashlib.blake2b(repr([alone[i] for i in range(len(asks))]).encode(), digest_size=6)
  return {
    "identical": Spread.of([float(each) for each in same]),
    "case": name,
    "requests": len(asks),
    "finished": ", ".join(str(len(each)) for each in (alone, *others)),
    "compiles": engine.compiles,
    "ids": ids.hexdigest(),
    "seconds": time.perf_counter() - began,
  }


def answers(
  engine: Engine, asks: Sequence[Ask], clients: int, share: float
) -> dict[int, tuple[int, ...]]:
  """Ids by request, so many of them in the engine at a time; of those that were not cancelled."""
  left, keys, found = list(range(len(asks)))[::-1], {}, {}
  leaves, ticks = cancelled(len(asks), share, seed=clients), {}
  while left or keys:
    while left and len(keys) < clients:
      i = left.pop()
      keys[engine.submit(asks[i])] = i
    for event in engine.tick():
      if event.completion:
        found[keys[event.key]] = tuple(event.completion.row)
      elif event.fault not in (None, "cancelled"):
        raise RuntimeError(f"request {keys[event.key]} ended by {event.fault}")
      if event.completion or event.fault:
        del keys[event.key]
    for key, i in keys.items():
      ticks[key] = ticks.get(key, 0) + 1
      if ticks[key] == leaves[i]:
        engine.cancel(key)
  return found
