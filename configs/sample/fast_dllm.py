r"""Fast-dLLM v1 (arXiv 2505.22618, 3.2-3.3): every token that is sure enough, over a dual cache.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/fast_dllm.py --prompt="..."

The paper's settings: threshold 0.9, blocks of 32, temperature 0. --config.cache.name=prefix keeps
only what stands before the block, --config.policy.name=factor is the paper's other rule.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="threshold", threshold=0.9),
      cache=dict(name="dual"),
      block=32,
      align="prompt",
      max_new_tokens=256,
    )
  )
