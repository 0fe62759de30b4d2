"""LLaDA-8B samples and trains on a TPU without an array of logits."""

import dataclasses
import math
import re

import pytest

from experiments.benchmarks import memory

BATCH, LENGTH = 32, 2048  # no axis of a parameter is as long as either's rows


def logits(program, rows: int) -> list[str]:
  """Arrays of the program with a number for every row and every id, whatever axes rows take."""
  found = re.findall(rf"\[([\d,]+),{memory.LLADA_8B.vocab}\]", program.as_text())
  return [each for each in found if math.prod(map(int, each.split(","))) == rows]


@pytest.mark.tpu
@pytest.mark.long
@pytest.mark.parametrize(
  "build,count,rows",
  [(memory.sampler, BATCH, BATCH * memory.BLOCK), (memory.gradient, LENGTH, LENGTH)],
  ids=["sampler", "gradient"],
)
def test_no_logits_of_llada_8b(build, count, rows):
  ours = build(memory.LLADA_8B, count, "v5p")
  naive = build(dataclasses.replace(memory.LLADA_8B, implementation=memory.NAIVE), count, "v5p")
  assert not logits(ours, rows)
  assert logits(naive, rows)
  one = 4 * rows * memory.LLADA_8B.vocab
  assert memory.temporary(naive) > memory.temporary(ours) + one
