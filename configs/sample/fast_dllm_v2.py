r"""Fast-dLLM v2 (arXiv 2509.26328): blocks written in parts of 8, with both its caches.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/fast_dllm_v2.py --prompt="..."

The settings of the authors' demo; confidence > 0.9 there, >= 0.9 here. The forward that commits a
block writes the first token of the next. cache.name=block computes whole blocks.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "parts",
      "size": 8,
      "inner": {
        "name": "threshold",
        "threshold": 0.9,
      },
    }
  )
  config.cache = ConfigDict({"name": "sub_block", "size": 8})
  config.commit = "separate"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 0
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.confidence = "shaped"
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
