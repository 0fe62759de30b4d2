"""The demo's model as a server: rows of 24 bytes, one block each, hence nothing to cache.

make serve      # or: python experiments/serve.py --checkpoint=DIR --config=configs/serve/demo.py
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      sampling=dict(policy=dict(name="threshold", threshold=0.9), cache=dict(name="none")),
      serving=dict(sizes=(24,), rows=8, turns=1, fill=0, constraints=True),
    )
  )
