"""Forwards of a block sampler and the sampler itself, timed beside what the roofline says of them.

`experiments/roofline.py --measure` prints them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm import build, roofline
from dlm.generate import Request, generator
from dlm.models import ModelConfig
from dlm.sampling.score import score
from dlm.types import KVCache, Params, StatSpec, TokenStats
from experiments.benchmarks import results

SIDE = 1024  # of the matmul that tells the peak
READ = 2**28  # bytes


@dataclasses.dataclass(frozen=True)
class Took:
  """Seconds, predicted as least and measured as the best of some rounds."""

  name: str
  predicted: float
  measured: float

  @property
  def reached(self) -> float:
    """Share of the roofline's speed."""
    return self.predicted / self.measured


@dataclasses.dataclass(frozen=True)
class Sampled:
  """What a sampler took for all its rows, and what its forwards would take alone."""

  tokens: int
  seconds: float
  predicted: float  # seconds of its forwards by the roofline
  forwards: dict[str, int]  # of a row, by kind

  @property
  def reached(self) -> float:
    return self.predicted / self.seconds


def here(dtype: Any, rounds: int) -> roofline.Chip:
  """This device: FLOP/s of a square matmul, bytes/s of what reads fastest, in `dtype`.

  Read is a matrix of READ bytes, far larger than caches: added to in place, summed, and multiplied
  with a vector, as a forward over few slots reads weights.
  """
  square = jnp.ones((SIDE, SIDE), dtype)
  rows = READ // (SIDE * square.dtype.itemsize)
  long, vector = jnp.ones((rows, SIDE), dtype), jnp.ones((SIDE, 1), dtype)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  held = [jnp.zeros_like(long)]

  def added() -> Any:
    held[0] = add(held[0])
    return held[0]

  run = {"matmul": (jax.jit(jnp.matmul), square, square), "sum": (jax.jit(jnp.sum), long),
         "vector": (jax.jit(jnp.matmul), long, vector)}  # fmt: skip
  calls = {name: functools.partial(*each) for name, each in run.items()} | {"add": added}
  for call in calls.values():
    jax.block_until_ready(call())
  seconds, _ = results.interleaved(calls, max(rounds, 3))
  best = {name: min(each) for name, each in seconds.items()}
  bandwidth = long.nbytes / min(best["sum"], best["vector"], best["add"] / 2)
  peak = 2.0 * SIDE**3 / best["matmul"]
  return roofline.Chip("here", bandwidth, peak, peak)


def bits_of(model: ModelConfig, params: Params) -> roofline.Bits:
  """Of what this process holds and computes."""
  weights = jax.tree.leaves(params)[0].dtype.itemsize
  computed = jnp.dtype(model.dtype).itemsize
  return roofline.Bits(8 * weights, 8 * computed, 8 * computed)


def timed(
  trained: build.Pretrained,
  params: Params,
  kinds: Mapping[str, roofline.Forward],
  bits: roofline.Bits,
  chip: roofline.Chip,
  rounds: int,
) -> list[Took]:
  """Each kind of forward, run alone over a row's last slots; the prefill over its first."""
  calls = {name: _call(trained, params, name, kinds) for name in kinds}
  for call in calls.values():
    jax.block_until_ready(call())
  seconds, _ = results.interleaved(calls, rounds)
  config = trained.model.config
  return [
    Took(name, roofline.seconds(config, kind, bits, chip), min(seconds[name]))
    for name, kind in kinds.items()
  ]


def _call(
  trained: build.Pretrained, params: Params, name: str, kinds: Mapping[str, roofline.Forward]
) -> Callable[[], Any]:
  model, kind, slots = trained.model, kinds[name], kinds["refresh"].queries
  rows, width = kind.rows, kind.queries
  first = 0 if name == "prefill" else slots - width
  slot_BxW = jnp.asarray(np.tile(np.arange(first, first + width), (rows, 1)), jnp.int32)
  begin_B = jnp.full(rows, slots - kinds["denoise"].queries)
  mask = trained.facts.attention(slot_BxW, slots, jnp.zeros_like(begin_B), begin_B)
  ask_BxA = slot_BxW[:, width - kind.asked :] - first
  told = {"time_BxW": jnp.ones(slot_BxW.shape)} if model.config.reads_noise else {}
  tokens_BxW = jnp.full_like(slot_BxW, trained.facts.mask_id)
  key_B = jax.random.split(jax.random.key(0), rows)

  def forward(params: Params, cache: KVCache) -> tuple[TokenStats | None, KVCache | None]:
    out = model(
      params, tokens_BxW, slot_BxW=slot_BxW, mask=mask, cache=cache,
      write_BxW=jnp.full(slot_BxW.shape, bool(kind.stored)), ask_BxA=ask_BxA, **told,
    )  # fmt: skip
    stats = None
    if kind.asked:
      at = {"current_BxA": ask_BxA, "slot_BxA": ask_BxA, "key_B": key_B}
      stats = score(out.head, StatSpec(forbidden=(trained.facts.mask_id,)), **at)
    return stats, out.cache

  run = jax.jit(forward, donate_argnums=1)  # the loop, too, changes its cache in place
  empty = model.empty_cache(rows, slots)
  filled_BxS = jnp.broadcast_to(jnp.arange(slots) < first, empty.filled_BxS.shape)
  # On the device by name, as what a call returns is: else the second call compiles again.
  held = [jax.device_put(empty.replace(filled_BxS=filled_BxS), jax.local_devices()[0])]

  def call() -> Any:
    stats, held[0] = run(params, held[0])
    return stats, held[0]

  return call


def sampled(
  trained: build.Pretrained,
  params: Params,
  config: build.SamplingConfig,
  rows: int,
  bits: roofline.Bits,
  chip: roofline.Chip,
  rounds: int,
) -> Sampled:
  """The real sampler over random prompts of half a canvas; the second half is written."""
  made, own = generator(dataclasses.replace(config, batch=rows, row_tile=0), trained)
  rng, slots = np.random.default_rng(0), own.slots
  requests = [
    Request.from_ids(
      i, "", rng.integers(0, trained.facts.vocab, slots // 2).astype(np.int32),
      trained.facts.mask_id, slots=slots,
    )
    for i in range(rows)
  ]  # fmt: skip
  runs = [made(params, requests) for _ in range(rounds)]
  best = min(runs, key=lambda done: done[0].seconds)
  counts = best[0].forwards
  whole = made.sampler.scope == "canvas" or not (counts["window"] or counts["commit"])
  predicted = least(
    trained.model.config, counts, best[0].queries, rows=rows, slots=slots, block=own.block,
    asked=slots if whole else own.block, bits=bits, chip=chip,
  )  # fmt: skip
  tokens = sum(sum(when > 0 for when in each.when) for each in best)
  return Sampled(tokens, best[0].seconds, predicted, counts)


def least(
  model: ModelConfig,
  counts: Mapping[str, int],
  queries: int,
  *,
  rows: int,
  slots: int,
  block: int,
  asked: int,
  bits: roofline.Bits,
  chip: roofline.Chip,
) -> float:
  """Seconds of a sampler's forwards by the roofline, where the second half of a row is written.

  Args:
    counts: forwards of a row by kind (`dlm.types.FORWARD_KINDS`).
    queries: slots that these computed of a row, all together.
    asked: slots of a forward over the whole canvas that meet the vocabulary.
  """
  cached = bool(counts["window"] or counts["commit"])
  queries -= counts["full"] * slots + counts["commit"] * block
  kinds = {
    "full": roofline.Forward(rows, slots, slots, asked, slots * cached),
    "commit": roofline.Forward(rows, block, slots * 3 // 4, 0, block),
  }
  if counts["window"]:
    width = round(queries / counts["window"])
    kinds["window"] = roofline.Forward(rows, width, slots * 3 // 4, block, width)
  return sum(
    counts[name] * roofline.seconds(model, kind, bits, chip) for name, kind in kinds.items()
  )
