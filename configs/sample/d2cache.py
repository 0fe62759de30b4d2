r"""d2Cache's decoding (arXiv 2509.23094): the surest tokens first, those near known ones before.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/d2cache.py --prompt="..."
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  policy = dict(name="certainty_prior", sigma=10.0)
  return ConfigDict(dict(policy=policy, block=256, max_new_tokens=256, stop="never"))
