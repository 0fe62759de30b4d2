r"""D2F (arXiv 2508.09192): the next block begins before the last is finished.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/d2f.py --prompt="..."

The authors' settings for LLaDA on GSM8K: tau_add 0.7, tau_act 0.95, tau_conf 0.9.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="pipelined", threshold=0.9, begin=0.7, eager=0.95),
      cache=dict(name="ahead"),
      max_new_tokens=256,
      stop="never",
    )
  )
