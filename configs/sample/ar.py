r"""Plain autoregressive decoding with a cache: the baseline everybody compares with.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/ar.py --prompt="..."

A window of one token a forward.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="introspective", stride=1),
      cache=dict(name="rolling"),
    )
  )
