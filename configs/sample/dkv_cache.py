r"""dKV-Cache (arXiv 2505.15781): keys of decided tokens are kept, one forward late.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dkv_cache.py --prompt="..."

With --config=configs/sample/dkv_cache.py:NAME, the paper's settings:

  decode  LLaDA-8B-Instruct, refreshed every 8 forwards: GSM8K 78.85 at 1.92 times the speed
  greedy  the same in a random order, every 2, 4 neighbours: GSM8K 68.23 at 1.63 times
  dream   Dream-7B-Base over 256 forwards, every 4: GSM8K 76.57 at 2.09 times
  pd      the same, its prompt cached for good: GSM8K 74.07 at 3.32 times
"""

from ml_collections import ConfigDict

LLADA = {"block": 64, "max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0}
DREAM = {"block": 256, "max_new_tokens": 256, "temperature": 0.2, "top_p": 0.95}
CONFIDENCE = {"name": "fixed", "steps": 64, "order": "confidence", "exact_steps": True}
PLANNED = {"name": "planned", "steps": 64, "exact_steps": True}
ENTROPY = {"name": "dream", "steps": 256, "alg": "entropy"}
SETTINGS = {
  "decode": (LLADA, CONFIDENCE, {"name": "dkv_decode", "interval": 8, "second_full": True}),
  "greedy": (LLADA, PLANNED, {"name": "dkv_greedy", "interval": 2, "window": 4}),
  "dream": (DREAM, ENTROPY, {"name": "dkv_decode", "interval": 4, "shift_rule": "un"}),
  "pd": (DREAM, ENTROPY, {"name": "dkv_pd", "interval": 4, "shift_rule": "un"}),
}


def get_config(setting: str = "decode") -> ConfigDict:
  config = ConfigDict()
  lengths, policy, cache = SETTINGS[setting]
  config.policy = ConfigDict(policy)
  config.cache = ConfigDict(cache)
  config.update(lengths)
  config.commit = "fused"
  config.align = "prompt"
  config.slots = 0
  config.max_forwards = 0
  config.top_k = 0
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
