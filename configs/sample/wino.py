r"""WINO (arXiv 2507.18578): wide in, and out again what the rest does not bear out.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/wino.py --prompt="..."

The authors' defaults: 128 tokens in one block, above 0.6 in, below 0.9 out; a forward is as wide as
the canvas and one block more. For some tasks --config.policy.threshold is 0.7 or 0.8.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="wino", threshold=0.6, back=0.9),
      cache=dict(name="none"),
      block=128,
      align="prompt",
      max_new_tokens=128,
      stop="never",
    )
  )
