r"""Efficient-DLM (arXiv 2512.14067): blocks on clean context, all that is surer than 0.9.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/efficient_dlm.py \
  --prompt="..."

No code is public: threshold and blocks (16 for 1.5B, 64 for 4B and 8B) are our reading of it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "threshold",
      "threshold": 0.9,
    }
  )
  config.cache = ConfigDict({"name": "block"})
  config.commit = "fused"
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
  config.stop = "stop"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
