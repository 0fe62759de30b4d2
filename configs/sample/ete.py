r"""Explore-then-exploit, our reading of the abstract of arXiv 2511.21103; no code is public.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/ete.py --prompt="..."

Every token above 0.9 in the active block of 32 or the next; where there is none, the one of highest
entropy. The numbers are Fast-dLLM's and ours: the authors' are not known to us.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "ete",
      "threshold": 0.9,
      "span": 64,
      "least": 1,
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
