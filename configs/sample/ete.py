r"""Explore-then-exploit, our reading of the abstract of arXiv 2511.21103; no code is public.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/ete.py --prompt="..."

Every token above 0.9 in the active block of 32 or the next; where there is none, the one of highest
entropy. The numbers are Fast-dLLM's and ours: the authors' are not known to us.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="ete", threshold=0.9, span=64, least=1),
      cache=dict(name="none"),
      block=32,
      align="prompt",
      max_new_tokens=256,
      stop="never",
    )
  )
