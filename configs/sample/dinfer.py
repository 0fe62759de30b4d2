r"""dInfer (arXiv 2510.08666): smoothed inputs over the vicinity cache, by a threshold that falls.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dinfer.py --prompt="..."

The settings of its evaluation guide for LLaDA-MoE: 1024 tokens in blocks of 64, cut from slot 0.
Its other decoders replace the policy's inner one: {"name": "hierarchy", "threshold": 0.92,
"low": 0.62, "decay": 0.02}, or {"name": "credit", "inner": {"name": "threshold", ...}}.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "smooth",
      "start": 0.15,
      "growth": 0.02,
      "limit": 0.3,
      "inner": {"name": "threshold", "threshold": 0.8, "band": 1e-5, "decay": 0.02},
    }
  )
  config.cache = ConfigDict({"name": "vicinity", "before": 16, "after": 16, "warmup": 4})
  config.commit = "fused"
  config.block = 64
  config.align = "canvas"
  config.slots = 0
  config.max_new_tokens = 1024
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "fill_block"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
