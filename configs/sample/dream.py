r"""Dream's sampler (arXiv 2508.15487): the tokens of least entropy first, in equal steps of time.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dream.py --prompt="..."

The setting of the authors' README: 512 tokens in one block and as many steps, temperature 0.2,
top-p 0.95. Their evaluation of Dream-Instruct on GSM8K: 256 tokens and steps, temperature 0.1,
top-p 0.9. Fast-dLLM's threshold for Dream goes by --config.policy.name=dream_threshold with
configs/sample/default.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "dream",
      "steps": 512,
      "alg": "entropy",
      "alg_temp": 0.0,
      "eps": 1e-3,
      "exact_steps": False,
    }
  )
  config.cache = ConfigDict({"name": "none"})
  config.commit = "fused"
  config.block = 512
  config.align = "prompt"
  config.slots = 0
  config.max_new_tokens = 512
  config.max_forwards = 0
  config.temperature = 0.2
  config.top_k = 0
  config.top_p = 0.95
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
