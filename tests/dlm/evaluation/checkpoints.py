"""Folders of tiny models that were never trained, for what answers."""

import pathlib

import jax

from dlm import build, checkpoint, workdir

MODEL = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 48}
KINDS = {
  "full": {"name": "mdlm"},
  "block": {"name": "bd3lm", "block": 8},
  "causal": {"name": "ar"},
}


def write(folder: pathlib.Path, kind: str, length: int = 128) -> pathlib.Path:
  """A checkpoint of random parameters, large enough that likelihoods tell tokens apart."""
  made = build.everything(
    {
      "steps": 1,
      "batch": 1,
      "optimizer": {"lr": 1e-2},
      "checkpoint": {"keep_best": 0},
      "model": MODEL,
      "objective": KINDS[kind],
      "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": length},
    }
  )
  params = jax.tree.map(lambda x: 3 * x, made.model.init(jax.random.key(1)))
  folder.mkdir()
  workdir.fill(folder, made.config(), made.facts, made.tokenizer)
  checkpoint.save_params(folder, 1, params, {"from": "tests"})
  return folder
