r"""Any policy by name: the table that every other file here fills in for one paper.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/default.py \
  --config.policy.name=factor --config.policy.factor=1.2 --prompt="..."

Fields that are not set take the policy's own defaults. dlm/sampling/policies lists the policies and
what their fields mean, dlm/sampling/caching the caches.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

POLICY = {  # every field of every policy
  int: "k ids n steps least most span max_steps first last answer_start answer_length "
  "size stride checked length",
  float: "threshold factor budget band decay low back alpha gamma bias start growth limit "
  "end_after early mid late alg_temp eps edit begin eager hot cold still",
  str: "order rule alg schedule score",
  bool: "exact_steps always correct",
  tuple: "forced",
}
CACHE = {  # and of every cache
  int: "interval window every before after warmup size delay",
  str: "count centre shift_rule",
  bool: "anchor settles second_full",
}


def unset(fields: dict) -> dict:
  return {name: placeholder(kind) for kind, names in fields.items() for name in names.split()}


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict({"name": "threshold", **unset(POLICY)})
  # A policy that wraps another (prophet, region, credit, smooth, parts) takes it from here.
  config.policy.inner = ConfigDict({"name": placeholder(str), **unset(POLICY)})
  # auto: the exact one of model and policy ("block", "ahead", "rolling"), else "none"
  config.cache = ConfigDict({"name": "auto", **unset(CACHE)})
  config.commit = "fused"  # or "separate", "free": how a finished block's keys enter the cache
  config.block = 0  # 0: the checkpoint's block
  config.align = "auto"  # auto: canvas for block-causal models, prompt otherwise
  config.slots = 0  # of the canvas; 0: the length of the model's training rows
  config.max_new_tokens = 0  # 0: as many as the canvas holds
  config.max_forwards = 0  # a row's; 0: as many as it may need
  config.temperature = 0.0
  config.top_k = 0  # 0: off
  config.top_p = 1.0  # 1: off
  config.top_p_rule = "reach"  # or "within": without the token that crosses top_p
  config.confidence = "plain"  # or "tempered", or "shaped": after temperature, top-k and top-p too
  config.guidance = 0.0  # scale of classifier-free guidance; 0: off
  config.forbid_ends = False  # stop ids are never written
  config.doubt_ends = False  # stop ids count for nothing in confidences: they are written last
  config.may_predict_mask = False  # True: as most authors' code, such slots stay masked
  config.scope = "auto"  # block, canvas; auto: what the policy needs
  config.stop = "stop"  # stop, stop_block, fill, fill_block, never: what a stop id does
  config.context = 0  # slots that a token sees at most, of a block-causal model; 0: all
  config.bos = False  # rows begin with the token that begins texts
  config.implementation = placeholder(str)  # of kernels, as xla or gpu,xla; unset: the best here
  config.least_entropy = 0.0  # nats of 256 tokens; a text that varies less ends before them; 0: off
  config.seed = 0
  config.batch = 8
  config.parallel = "shard_map"  # or "pmap"
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "expert": 1})
  return config
