r"""CD4LM's confidence-adaptive decoding (arXiv 2601.02236).

python experiments/sample.py --checkpoint=DIR --config=configs/sample/cd4lm.py --prompt="..."

The evaluation scripts' setting for mathematics: threshold 0.95, 1 to 32 tokens a forward, blocks of
32, end tokens not before 30 % of 256 tokens.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "cad",
      "threshold": 0.95,
      "least": 1,
      "most": 32,
      "order": "confidence",
      "end_after": 0.3,
      "max_steps": 32,
    }
  )
  config.cache = ConfigDict({"name": "none"})
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
  config.stop = "never"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
