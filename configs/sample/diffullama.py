r"""DiffuLLaMA's sampler (arXiv 2410.17891): each mask is written by a coin, over 64 equal steps.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/diffullama.py --prompt="..."

The settings of the authors' inf_diffullama.py: a canvas of 2048 slots, temperature 0.9, top-p 0.9.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="ancestral", steps=64, schedule="log_linear"),
      cache=dict(name="none"),
      block=2048,
      align="prompt",
      slots=2048,
      temperature=0.9,
      top_p=0.9,
      bos=True,
      stop="never",
    )
  )
