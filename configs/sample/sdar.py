r"""SDAR (arXiv 2510.06303): all that is surer than 0.85, at least one a forward.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/sdar.py --prompt="..."

The settings of the authors' generate.py (theirs: blocks of 4), confidences before top-k and top-p
as in their evaluation. policy.threshold=1 is their static rule, policy.order=left_to_right their
sequential one, and configs/sample/entropy_bounded.py with policy.rule=total JetEngine's.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "quota",
      "threshold": 0.85,
    }
  )
  config.cache = ConfigDict({"name": "block"})
  config.commit = "fused"
  config.block = 0
  config.align = "auto"
  config.slots = 0
  config.max_new_tokens = 0
  config.max_forwards = 0
  config.temperature = 0.0
  config.top_k = 0
  config.top_p = 1.0
  config.confidence = "tempered"
  config.guidance = 0.0
  config.forbid_ends = False
  config.doubt_ends = False
  config.may_predict_mask = False
  config.scope = "auto"
  config.stop = "stop_block"
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
