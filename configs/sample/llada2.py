r"""LLaDA2.0 (arXiv 2512.15745, 6.1): all that is surer than 0.95, at least one a forward.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada2.py --prompt="..."

Greedy, in the checkpoint's blocks (theirs: 32). Their Hugging Face code keeps no cache; this one
is exact.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="quota", threshold=0.95),
      cache=dict(name="block"),
      stop="stop_block",
    )
  )
