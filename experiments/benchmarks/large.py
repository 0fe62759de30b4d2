"""Models as large as users have, weights random: a block sampler and a training step.

Shapes are SDAR-8B's and a model of 1B on an accelerator, far smaller ones on a CPU. "of roofline"
is what the forwards take at least, by this device's measured peak and bandwidth (`dlm.roofline`),
over what they took. MFU: matmul FLOPs of an update (`dlm.train.Step.flops`: three forwards) a
second, over the maker's peak.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np

from dlm import masks
from dlm.models import Model, ModelConfig, bind, from_preset
from dlm.models.apart import apart
from dlm.sampling import caching, loop
from dlm.sampling.policies import Fixed
from dlm.types import FORWARD_KINDS, Params
from experiments.benchmarks import block, forwards, training
from experiments.benchmarks.results import Row, Table, interleaved, rate


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  batches: tuple[int, ...]
  prompt: int
  new: int
  block: int
  steps: int  # forwards a block
  rounds: int
  trained: training.Size


TINY = Size(
  block.TINY.model, batches=(2,), prompt=8, new=8, block=4, steps=2, rounds=1,
  trained=dataclasses.replace(training.TINY, cases=training.TINY.cases[:1]),
)  # fmt: skip
CPU = Size(
  from_preset("100m", vocab=32_000), batches=(1, 4), prompt=128, new=32, block=16, steps=4,
  rounds=3,
  trained=dataclasses.replace(
    training.CPU, cases=(training.Case("mdlm", "30m", 4, 128, 32_000),), rounds=3
  ),
)  # fmt: skip
ACCELERATOR = Size(
  from_preset("qwen3-8b", vocab=151_936, dtype="bfloat16"),
  batches=(1, 8, 32), prompt=512, new=64, block=32, steps=8, rounds=5,
  trained=dataclasses.replace(
    training.ACCELERATOR,
    cases=(training.Case("mdlm", "1b", 8, 2048, 32_000, "bfloat16"),),
    rounds=5,
  ),
)  # fmt: skip


def _chosen(size: str) -> Size:
  return TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR


def _implementations() -> tuple[str | None, ...]:
  """The device's default, and the kernels that are none yet."""
  return (None, "gpu,xla") if jax.default_backend() == "gpu" else (None,)


def update(size: str) -> list[Table]:
  trained = _chosen(size).trained
  cases = itertools.product(trained.cases, _implementations())
  cases = tuple(dataclasses.replace(case, implementation=name) for case, name in cases)
  return [training.updates(dataclasses.replace(trained, cases=cases))]


def sampling(size: str) -> list[Table]:
  chosen = _chosen(size)
  params = apart(_random(bind(chosen.model)))
  rows = [
    _sampled(chosen, bind(dataclasses.replace(chosen.model, implementation=name)), params, batch)
    for batch in chosen.batches
    for name in _implementations()
  ]
  note = "least seconds of its forwards by the roofline / seconds, cached prompt included"
  return [Table("block sampler", note, rows)]


def _random(model: Model) -> Params:
  """In the dtype that the model computes in: a checkpoint's float32 would not fit twice."""

  @jax.jit
  def fresh(key: jax.Array) -> Params:
    return jax.tree.map(lambda x: x.astype(model.config.dtype), model.init(key))

  return fresh(jax.random.key(0))


def _sampled(size: Size, model: Model, params: Params, batch: int) -> Row:
  slots, config = size.prompt + size.new, model.config
  mask_id, sees = config.vocab - 1, masks.BlockCausal(size.block)
  method = block.Method(Fixed(steps=size.steps), caching.ExactBlock())
  sampler = method.sampler(model, sees, size.block, mask_id)
  prompts = np.random.default_rng(0).integers(0, mask_id, (batch, size.prompt), np.int32)
  canvas = block.canvas_of(list(prompts), slots, size.block, mask_id)
  program = jax.jit(loop.run, static_argnums=0).lower(sampler, params, canvas).compile()
  call = functools.partial(program, params, canvas)
  jax.block_until_ready(call())
  seconds, done = interleaved({"ours": call}, size.rounds)
  counts = dict(zip(FORWARD_KINDS, map(int, np.asarray(done["ours"].forwards_Bx3)[0]), strict=True))
  queries = int(np.asarray(done["ours"].queries_B)[0])
  chip = forwards.here(config.dtype, size.rounds)
  bits = forwards.bits_of(config, params)
  least = forwards.least(
    config, counts, queries, rows=batch, slots=slots, block=size.block, asked=size.block,
    bits=bits, chip=chip,
  )  # fmt: skip
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  return {
    "of roofline": rate(least, seconds["ours"]),
    "rows": batch,
    "implementation": config.implementation or "default",
    "tokens/s": rate(batch * size.new, seconds["ours"]),
    "tokens/s a row": rate(size.new, seconds["ours"]),
    **{f"{kind} forwards": count for kind, count in counts.items()},
    "weights, B": float(weights),
    "bandwidth here, B/s": chip.bandwidth,
    "peak here, FLOP/s": chip.peak(bits),
    "temporary, B": float(program.memory_analysis().temp_size_in_bytes),
  }
