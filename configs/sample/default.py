r"""Any policy by name: the table that every other file here fills in for one paper.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py \
  --config.policy.name=factor --config.policy.factor=1.2 --prompt="..."

Fields that are not set take the policy's own defaults. Policies: fixed (k or steps; order),
threshold, factor, left_to_right (k), ancestral (steps, schedule).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "threshold",
      "threshold": placeholder(float),
      "factor": placeholder(float),
      "k": placeholder(int),
      "steps": placeholder(int),
      "order": placeholder(str),
      "schedule": placeholder(str),
    }
  )
  config.cache = ConfigDict({"name": "auto"})  # auto: "block" where it is exact, else "none"
  config.commit = "fused"  # or "separate"
  config.block = 0  # 0: the checkpoint's block
  config.align = "auto"  # auto: canvas for block-causal models, prompt otherwise
  config.slots = 0  # of the canvas; 0: the length of the model's training rows
  config.max_new_tokens = 0  # 0: as many as the canvas holds
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
