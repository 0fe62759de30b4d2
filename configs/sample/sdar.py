r"""SDAR (arXiv 2510.06303): all that is surer than 0.85, at least one a forward.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/sdar.py --prompt="..."

The settings of the authors' generate.py (theirs: blocks of 4), confidences before top-k and top-p
as in their evaluation. policy.threshold=1 is their static rule, policy.order=left_to_right their
sequential one, and configs/sample/entropy_bounded.py with policy.rule=total JetEngine's.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="quota", threshold=0.85),
      cache=dict(name="block"),
      confidence="tempered",
      stop="stop_block",
    )
  )
