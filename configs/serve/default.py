r"""A server with the defaults of `dlm.serving.config.ServeConfig`, whose requests may use them all.

python experiments/serve.py --checkpoint=DIR --config=configs/serve/default.py \
  --config.serving.rows=16 --config.sampling.policy.threshold=0.95
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(dict(serving=dict(constraints=True)))
