"""WeDLM (arXiv 2512.22737): a causal model writes sure tokens of a window that slides on.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/wedlm.py --chat --prompt="..."

The settings of the authors' example.py: a window of 16, entropies below 0.6 with 0.02 nats for each
slot behind the first mask, greedy. Their web demo has 0.4: --config.policy.threshold=0.4.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="wedlm", threshold=0.6, penalty=0.02),
      cache=dict(name="block"),
      block=16,
      max_new_tokens=512,
    )
  )
