"""Configs become objects: the only place of `dlm` that reads one.

`everything` builds a training run, `pretrained` opens a checkpoint of ours or of others, and
`sampling` builds its sampler; each checks all that it is given first, so that a mistake is told
before anything compiles.
"""

from dlm.build.export import write_checkpoint, write_huggingface
from dlm.build.models import model, saved_tokenizer, tokenizer
from dlm.build.pretrained import Pretrained, pretrained
from dlm.build.sampling import Sampling, sampling
from dlm.build.tables import plain
from dlm.build.training import (
  Training,
  estimator,
  everything,
  mesh,
  objective,
  rows,
)

__all__ = [
  "Pretrained",
  "Sampling",
  "Training",
  "estimator",
  "everything",
  "mesh",
  "model",
  "objective",
  "plain",
  "pretrained",
  "rows",
  "sampling",
  "saved_tokenizer",
  "tokenizer",
  "write_checkpoint",
  "write_huggingface",
]
