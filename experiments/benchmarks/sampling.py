"""Sampling: the block cache, with fused and separate commits, against no cache, at equal tokens.

And what it costs that a row's bits owe nothing to its neighbours: `row_tile`. The parameters are
random: speed does not depend on what is written, and equal tokens are asserted.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, bind, from_preset
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Fixed
from dlm.types import FORWARD_KINDS, Canvas
from experiments.benchmarks.results import Row, Table, interleaved, rate, ratio


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  shapes: tuple[tuple[int, int], ...]  # batch, canvas length; the first half is prompt
  block: int
  steps: int  # forwards a block
  rounds: int
  rows: tuple[int, ...]  # asked for at once, over tiles of so many


TINY = Size(
  ModelConfig(vocab=37, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  shapes=((2, 32),),
  block=8,
  steps=2,
  rounds=2,
  rows=(3,),
)
CPU = Size(
  from_preset("1m", vocab=260, layers=2),
  shapes=((1, 256), (8, 256), (1, 1024), (8, 1024)),
  block=32,
  steps=2,
  rounds=3,
  rows=(1, 8, 32),
)
ACCELERATOR = Size(
  from_preset("100m", vocab=32_000),
  shapes=((1, 256), (8, 256), (1, 1024), (8, 1024), (32, 1024)),
  block=32,
  steps=8,
  rounds=10,
  rows=(1, 8, 32),
)
VARIANTS = {  # name -> cache plan, commit
  "no cache": ("none", "fused"),
  "fused": ("block", "fused"),
  "separate": ("block", "separate"),
}


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  # Cached and uncached forwards have other shapes: only full precision keeps their tokens equal.
  with jax.default_matmul_precision("highest"):
    rows = [row for shape in chosen.shapes for row in _against_no_cache(chosen, *shape)]
  tiles = [row for plan in ("none", "block") for row in _against_one_batch(chosen, plan)]
  return [
    Table("sampling", "seconds without a cache / seconds, at equal tokens", rows),
    Table("row tiles", "seconds in tiles of N rows / seconds as one batch of all rows", tiles),
  ]


def _against_no_cache(size: Size, batch: int, length: int) -> list[Row]:
  model = bind(size.model)
  params = jax.jit(model.init)(jax.random.key(0))
  canvas = _canvas(size, batch, length)
  calls = {}
  for name, (plan, commit) in VARIANTS.items():
    sampler = _sampler(size, plan, commit)
    compiled = jax.jit(loop.run, static_argnums=0).lower(sampler, params, canvas).compile()
    idle = canvas.replace(done_B=jnp.ones_like(canvas.done_B))
    jax.block_until_ready(compiled(params, idle))  # warm, and nothing is sampled
    calls[name] = functools.partial(compiled, params, canvas)
  seconds, done = interleaved(calls, size.rounds)
  check_equal(done, size.model.vocab - 1)
  new = batch * (length - length // 2)
  return [
    {
      "speed-up": ratio(seconds["no cache"], seconds[name]),
      "case": f"{name}, {batch} x {length}",
      "tokens/s": rate(new, seconds[name]),
      **{f"{kind} forwards": int(n) for kind, n in _forwards(done[name]).items()},
      "queries/token": float(np.sum(done[name].queries_B)) / new,
    }
    for name in calls
  ]


def _against_one_batch(size: Size, plan: str) -> list[Row]:
  """Rows whose prompts end all over their blocks, so that they meet in different phases."""
  model, length = bind(size.model), size.shapes[0][1]
  params = jax.jit(model.init)(jax.random.key(0))
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  tokens = np.random.default_rng(0).integers(0, size.model.vocab - 1, length, np.int32)
  make = functools.partial(
    Generator, _sampler(size, plan, "fused"), ByteTokenizer(), mesh, align="canvas"
  )
  found = []
  for count in size.rows:
    starts = [length // 2 + 5 * i % size.block for i in range(count)]
    asked = [Request(i, "", tokens, np.arange(length) >= start) for i, start in enumerate(starts)]
    generators = {0: make(batch=count), **{tile: make(row_tile=tile) for tile in size.rows}}
    for each in generators.values():
      each(params, asked[:1])  # compiles
    calls = {tile: functools.partial(each, params, asked) for tile, each in generators.items()}
    seconds, _ = interleaved(calls, size.rounds)
    found += [
      {
        "time": ratio(seconds[tile], seconds[0]),
        "case": f"cache {plan}, {count} rows, row_tile={tile}",
        "rows/s": rate(count, seconds[tile]),
      }
      for tile in calls
    ]
  return found


def _forwards(canvas: Canvas) -> dict[str, int]:
  """Of the first row; all rows are alike under this policy."""
  return dict(zip(FORWARD_KINDS, np.asarray(canvas.forwards_Bx3)[0], strict=True))


def _sampler(size: Size, plan: str, commit: str) -> loop.Sampler:
  return loop.Sampler(
    denoise=bind(size.model),
    policy=Fixed(steps=size.steps),
    plan=PLANS[plan](),
    sees=masks.BlockCausal(size.block),
    block=size.block,
    max_forwards=1_000_000,
    mask_id=size.model.vocab - 1,
    commit=commit,
  )


def _canvas(size: Size, batch: int, length: int) -> Canvas:
  tokens_BxL = np.random.default_rng(0).integers(0, size.model.vocab - 1, (batch, length), np.int32)
  return make_canvas(
    list(tokens_BxL),
    [np.arange(length) >= length // 2] * batch,
    list(range(batch)),
    slots=length,
    block=size.block,
    align="canvas",
    mask_id=size.model.vocab - 1,
    seed=0,
  )


def check_equal(done: dict[str, Canvas], mask_id: int) -> None:
  """A speed at other tokens would be no comparison."""
  expected = np.asarray(done["no cache"].tokens_BxL)
  if (expected == mask_id).any():
    raise RuntimeError("sampling: masks are left on the canvas")
  for name, canvas in done.items():
    differing = int((np.asarray(canvas.tokens_BxL) != expected).sum())
    if differing:
      raise RuntimeError(f"sampling: {name} writes {differing} other tokens than no cache")
