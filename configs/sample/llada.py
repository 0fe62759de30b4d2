"""LLaDA's sampler (arXiv 2502.09992, 2.4): low-confidence remasking, tokens split over steps.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada.py --prompt="..."
LLaDA-8B-Instruct's GSM8K setting (EVAL.md): 256 tokens in blocks of 8, one token per forward.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "fixed",
      "threshold": placeholder(float),
      "factor": placeholder(float),
      "k": placeholder(int),
      "steps": 8,
      "order": "confidence",
      "schedule": placeholder(str),
    }
  )
  config.cache = ConfigDict({"name": "auto"})  # auto: "block" where it is exact, else "none"
  config.commit = "fused"  # or "separate"
  config.block = 8
  config.align = "prompt"
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
