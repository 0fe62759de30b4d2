r"""LLaDA2.1 (arXiv 2602.08676, 2): written tokens are edited until the block stands still.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada21.py --prompt="..."

The thresholds quoted as its quality mode; 0.5 and 0.0 are quoted as its speed mode, 0.95 and 0.9
are the defaults of its code. The forward that changes nothing is the commit.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "edit",
      "threshold": 0.7,
      "edit": 0.5,
      "most": 16,
    }
  )
  config.cache = ConfigDict({"name": "block"})
  config.commit = "free"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 0
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
  config.stop = "stop_block"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
