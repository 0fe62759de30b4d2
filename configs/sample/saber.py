r"""Saber (arXiv 2510.18165): faster as confidence grows, and back over what became doubtful.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/saber.py --prompt="..."

The authors' setting for code: 256 tokens in one block, at least two a forward.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="saber", n=2),
      cache=dict(name="none"),
      block=256,
      align="prompt",
      max_new_tokens=256,
      stop="never",
    )
  )
