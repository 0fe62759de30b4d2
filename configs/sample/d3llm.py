r"""d3LLM (arXiv 2601.07568): many blocks at once, by entropy.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/d3llm.py --prompt="..."

The authors' settings for LLaDA; for Dream policy.threshold=0.4 and policy.always=False. Their runs
with a cache: cache.name=matured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "distilled",
      "threshold": 0.5,
      "begin": 0.1,
      "eager": 0.95,
      "always": True,
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
  config.confidence = "plain"
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "fill"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
