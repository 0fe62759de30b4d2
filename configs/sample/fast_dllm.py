"""Every token that is sure enough: Fast-dLLM v1 without its caches (arXiv 2505.22618, 3.3).

python experiments/sample.py --checkpoint=DIR --config=configs/sample/fast_dllm.py --prompt="..."
The paper's settings: threshold 0.9, blocks of 32, temperature 0.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "threshold",
      "threshold": 0.9,
      "factor": placeholder(float),
      "k": placeholder(int),
      "steps": placeholder(int),
      "order": placeholder(str),
      "schedule": placeholder(str),
    }
  )
  config.cache = ConfigDict({"name": "auto"})  # auto: "block" where it is exact, else "none"
  config.commit = "fused"  # or "separate"
  config.block = 32
  config.align = "auto"
  config.slots = 0  # of the canvas; 0: the length of the model's training rows
  config.max_new_tokens = 256
  config.max_forwards = 0  # a row's; 0: as many as it may need
  config.temperature = 0.0
  config.top_k = 0  # 0: off
  config.top_p = 1.0  # 1: off
  config.stop = True  # end a row at the tokenizer's or checkpoint's stop ids
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"  # or "pmap"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
