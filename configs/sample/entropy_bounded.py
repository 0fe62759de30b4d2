r"""As many tokens a forward as an entropy budget allows: EB-Sampler (arXiv 2505.24857), and SDAR's.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/entropy_bounded.py \
  --prompt="..."

SDAR's JetEngine (arXiv 2510.06303): --config.policy.rule=total --config.policy.budget=0.35, with
--config.block=4 and --config.temperature=1.0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "entropy_bounded",
      "budget": 0.1,
      "rule": "excess",
      "order": "entropy",
    }
  )
  config.cache = ConfigDict({"name": "auto"})
  config.commit = "fused"
  config.block = 32
  config.align = "auto"
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
