"""Configs become objects: the only place of `dlm` that reads one.

`everything` builds a training run, `sampling` the sampler of a checkpoint; each checks all of its
config first, so that a mistake is told before anything compiles.
"""

from dlm.building.samplers import Sampling, sampling
from dlm.building.tables import plain
from dlm.building.training import (
  Training,
  estimator,
  everything,
  mesh,
  model,
  objective,
  rows,
  saved_tokenizer,
  tokenizer,
)

__all__ = [
  "Sampling",
  "Training",
  "estimator",
  "everything",
  "mesh",
  "model",
  "objective",
  "plain",
  "rows",
  "sampling",
  "saved_tokenizer",
  "tokenizer",
]
