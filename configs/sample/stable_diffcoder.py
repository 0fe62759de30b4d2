r"""Stable-DiffCoder (arXiv 2601.15892): blocks of 4, the surest token of the block each forward.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/stable_diffcoder.py --chat \
  --prompt="Write a quick sort algorithm."

The setting of the authors' README: 512 tokens in 512 forwards, greedy, with the exact cache. Their
function's own default takes all that is surer, too: --config.policy.name=threshold
--config.policy.threshold=0.95.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="fixed", steps=4, order="confidence"),
      cache=dict(name="block"),
      max_new_tokens=512,
      stop="stop_block",
    )
  )
