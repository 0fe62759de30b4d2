"""A masked-diffusion model of one update, for mains that need a checkpoint and no skill."""

import pathlib

from dlm import build, train


def trained(folder: pathlib.Path, length: int) -> pathlib.Path:
  """The folder, with a checkpoint whose rows have so many tokens."""
  run = {
    "seed": 0,
    "steps": 1,
    "batch": 8,
    "objective": {"name": "mdlm"},
    "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 16},
    "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": length},
    "optimizer": {"lr": 1e-2},
    "checkpoint": {"keep_best": 0},
  }
  train.train(build.everything(run), folder)
  return folder
