"""Memory: temporary bytes of the compiled sampler against vocabulary and rows.

Nothing is allocated: programs are compiled for shapes, and XLA says what they need besides their
arguments and results.
"""

import dataclasses
import functools

import jax
import numpy as np

from dlm import masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold
from experiments.benchmarks.results import Table

BLOCK = 32
# The other implementation of the same statistics: all logits at once, in one array.
NAIVE = "reference"


@dataclasses.dataclass(frozen=True)
class Size:
  vocabs: tuple[int, ...]
  batches: tuple[int, ...]


SIZES = {
  "tiny": Size((8_000, 24_000), (8, 32)),
  "default": Size((32_000, 64_000, 128_000, 152_000), (1, 32)),
}


def run(size: str) -> list[Table]:
  chosen = SIZES[size]
  grid = [(batch, vocab) for batch in chosen.batches for vocab in chosen.vocabs]
  ours = {(batch, vocab): temporary_bytes(batch, vocab) for batch, vocab in grid}
  naive = {(batch, vocab): temporary_bytes(batch, vocab, NAIVE) for batch, vocab in grid}
  rows = [
    {
      "naive / ours": naive[case] / ours[case],
      "case": f"{case[0] * BLOCK} rows, vocabulary {case[1]}",
      "ours, B": float(ours[case]),
      "naive, B": float(naive[case]),
      "one [rows, vocabulary] float32, B": float(4 * case[0] * BLOCK * case[1]),
    }
    for case in grid
  ]
  growth = [
    {"B per row x vocabulary": growth_per_logit(bytes_), "case": name}
    for name, bytes_ in {"ours": ours, "naive": naive}.items()
  ]
  return [
    Table("memory", "temporary bytes of the sampler with all logits at once / in tiles", rows),
    Table("growth", "bytes that each further logit costs; one float32 array of them: 4", growth),
  ]


@functools.cache
def temporary_bytes(batch: int, vocab: int, implementation: str | None = None) -> int:
  """Of the sampling loop over `batch` blocks of `BLOCK` rows; parameters are not counted."""
  model = bind(
    ModelConfig(vocab=vocab, width=64, layers=2, heads=2, kv_heads=2, head_dim=32, mlp=128)
  )
  sampler = loop.Sampler(
    denoise=model,
    policy=Threshold(),
    plan=PLANS["none"](),
    sees=masks.BlockCausal(BLOCK),
    block=BLOCK,
    max_forwards=1000,
    mask_id=vocab - 1,
    implementation=implementation,
  )
  tokens, free = np.zeros(2 * BLOCK, np.int32), np.arange(2 * BLOCK) >= BLOCK
  canvas = make_canvas(
    [tokens] * batch,
    [free] * batch,
    list(range(batch)),
    slots=2 * BLOCK,
    block=BLOCK,
    align="canvas",
    mask_id=vocab - 1,
    seed=0,
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  compiled = jax.jit(loop.run, static_argnums=0).lower(sampler, params, canvas).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def growth_per_logit(bytes_: dict[tuple[int, int], int]) -> float:
  """Bytes per row x vocabulary, from the corners of the grid.

  The difference of differences: what grows with rows alone (activations) or with the vocabulary
  alone (a copy of the unembedding) drops out.
  """
  batches, vocabs = zip(*bytes_, strict=True)
  few, many, small, large = min(batches), max(batches), min(vocabs), max(vocabs)
  corners = bytes_[many, large] - bytes_[many, small] - bytes_[few, large] + bytes_[few, small]
  return corners / ((many - few) * BLOCK * (large - small))
