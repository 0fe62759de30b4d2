r"""d3LLM (arXiv 2601.07568): many blocks at once, by entropy.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/d3llm.py --prompt="..."

The authors' settings for LLaDA; for Dream policy.threshold=0.4 and policy.always=False. Their runs
with a cache: cache.name=matured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="distilled", threshold=0.5, begin=0.1, eager=0.95, always=True),
      cache=dict(name="none"),
      block=32,
      align="prompt",
      max_new_tokens=256,
      stop="fill",
    )
  )
