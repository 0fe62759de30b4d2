r"""LLaDA2.1 (arXiv 2602.08676, 2): written tokens are edited until the block stands still.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada21.py --prompt="..."

The thresholds quoted as its quality mode; 0.5 and 0.0 are quoted as its speed mode, 0.95 and 0.9
are the defaults of its code. The forward that changes nothing is the commit.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="edit", threshold=0.7, edit=0.5, most=16),
      cache=dict(name="block"),
      commit="free",
      stop="stop_block",
    )
  )
