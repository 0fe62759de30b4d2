"""MDLM's ancestral sampler (arXiv 2406.07524, 3.2.3): a draw of the model in a random order.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/mdlm.py --prompt="..."
One block holds all new tokens; more steps mean fewer tokens decided together.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "ancestral",
      "steps": 128,
      "schedule": "log_linear",
    }
  )
  config.cache = ConfigDict({"name": "auto"})  # auto: "block" where it is exact, else "none"
  config.commit = "fused"  # or "separate"
  config.block = 128
  config.align = "prompt"
  config.slots = 0  # of the canvas; 0: the length of the model's training rows
  config.max_new_tokens = 128
  config.max_forwards = 0  # a row's; 0: as many as it may need
  config.temperature = 1.0
  config.top_k = 0  # 0: off
  config.top_p = 1.0  # 1: off
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "stop"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"  # or "pmap"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
