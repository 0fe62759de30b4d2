r"""Fast-dLLM v1 (arXiv 2505.22618, 3.2-3.3): every token that is sure enough, over a dual cache.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/fast_dllm.py --prompt="..."

The paper's settings: threshold 0.9, blocks of 32, temperature 0. --config.cache.name=prefix keeps
only what stands before the block; with configs/sample/default.py the policy "factor" goes too.
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
  config.cache = ConfigDict({"name": "dual"})
  config.commit = "fused"
  config.block = 32
  config.align = "prompt"
  config.slots = 0
  config.max_new_tokens = 256
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
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
