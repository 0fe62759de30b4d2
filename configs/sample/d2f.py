r"""D2F (arXiv 2508.09192): the next block begins before the last is finished.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/d2f.py --prompt="..."

The authors' settings for LLaDA on GSM8K: tau_add 0.7, tau_act 0.95, tau_conf 0.9.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "pipelined",
      "threshold": 0.9,
      "begin": 0.7,
      "eager": 0.95,
    }
  )
  config.cache = ConfigDict({"name": "ahead"})
  config.commit = "fused"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 256
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.confidence = "plain"
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
