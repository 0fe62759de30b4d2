r"""MDPO's decoding (arXiv 2508.13148): all masks are filled, the least sure are masked again.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/mdpo.py --prompt="..."

The authors' setting: 512 tokens in one block, 128 forwards, so that four more stay after each.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="running_confidence", steps=128),
      cache=dict(name="none"),
      block=512,
      align="prompt",
      max_new_tokens=512,
      stop="never",
    )
  )
