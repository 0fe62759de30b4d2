"""Configs become objects: the only place of `dlm` that reads one.

A config is read once, into `SamplingConfig` or `RunConfig`, whose defaults are the base of every
file in configs/. `everything` builds a training run, `pretrained` opens a checkpoint of ours or of
others, and `sampling` builds its sampler; each checks all that it is given first, so that a mistake
is told before anything compiles.
"""

from dlm.build.export import write_adapter, write_checkpoint, write_huggingface
from dlm.build.pretrained import Pretrained, pretrained
from dlm.build.run import RunConfig
from dlm.build.sampling import SamplingConfig, on_mesh, sampling
from dlm.build.tables import plain
from dlm.build.training import Training, asked_by, estimator, everything, planned, recorded, rows

__all__ = [
  "Pretrained",
  "RunConfig",
  "SamplingConfig",
  "Training",
  "asked_by",
  "estimator",
  "everything",
  "on_mesh",
  "plain",
  "planned",
  "pretrained",
  "recorded",
  "rows",
  "sampling",
  "write_adapter",
  "write_checkpoint",
  "write_huggingface",
]
