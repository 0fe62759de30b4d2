r"""WINO (arXiv 2507.18578): wide in, and out again what the rest does not bear out.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/wino.py --prompt="..."

The authors' defaults: 128 tokens in one block, above 0.6 in, below 0.9 out; a forward is as wide as
the canvas and one block more. For some tasks --config.policy.threshold is 0.7 or 0.8.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "wino",
      "threshold": 0.6,
      "back": 0.9,
    }
  )
  config.cache = ConfigDict({"name": "none"})
  config.commit = "fused"
  config.block = 128
  config.align = "prompt"
  config.slots = 0
  config.max_new_tokens = 128
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "never"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
