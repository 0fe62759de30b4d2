r"""Any policy by name: the table that every other file here fills in for one paper.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py \
  --config.policy.name=factor --config.policy.factor=1.2 --prompt="..."

Fields that are not set take the policy's own defaults. dlm/sampling/policies lists the policies and
what their fields mean, dlm/sampling/caching the caches.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def fields() -> dict:
  """Every field of every policy, unset."""
  named = {
    int: "k ids steps n least most max_steps answer_start answer_length",
    float: "threshold factor end_after early mid late band decay low alpha gamma first growth last",
    str: "order rule schedule",
    bool: "exact_steps",
  }
  return {name: placeholder(kind) for kind, names in named.items() for name in names.split()}


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict({"name": "threshold", **fields()})
  config.policy.inner = ConfigDict({"name": placeholder(str), **fields()})  # of wrappers: prophet
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
  config.guidance = 0.0  # scale of classifier-free guidance; 0: off
  config.forbid_ends = False  # stop ids are never written
  config.doubt_ends = False  # stop ids count for nothing in confidences: they are written last
  config.may_predict_mask = False  # True: as most authors' code, such slots stay masked
  config.scope = "auto"  # block, canvas; auto: what the policy needs
  config.stop = "stop"  # stop, stop_block, fill, fill_block, never: what a stop id does
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"  # or "pmap"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
