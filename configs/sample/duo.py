"""Duo's ancestral sampler (arXiv 2506.10892): random ids become text, all of it at every step.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/duo.py --prompt="..."

DIR: a checkpoint of configs/train/duo.py. One block holds all new tokens; each of its steps is a
forward. The authors take 1000 of them, and fewer after distillation, which is not here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="duo", schedule="log_linear", steps=128),
      cache=dict(name="none"),
      align="prompt",
      temperature=1.0,
      stop="stop_block",
    )
  )
