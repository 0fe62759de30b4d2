r"""dKV-Cache (arXiv 2505.15781): keys of decided tokens are kept, one forward late.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dkv_cache.py --prompt="..."

With --config=configs/sample/dkv_cache.py:NAME, the paper's settings:

  decode  LLaDA-8B-Instruct, refreshed every 8 forwards: GSM8K 78.85 at 1.92 times the speed
  greedy  the same in a random order, every 2, 4 neighbours: GSM8K 68.23 at 1.63 times
  dream   Dream-7B-Base over 256 forwards, every 4: GSM8K 76.57 at 2.09 times
  pd      the same, its prompt cached for good: GSM8K 74.07 at 3.32 times
"""

from ml_collections import ConfigDict

LLADA = dict(block=64, max_new_tokens=128)
DREAM = dict(block=256, max_new_tokens=256, temperature=0.2, top_p=0.95)
CONFIDENCE = dict(name="fixed", steps=64, order="confidence", exact_steps=True)
PLANNED = dict(name="planned", steps=64, exact_steps=True)
ENTROPY = dict(name="dream", steps=256, alg="entropy")
SETTINGS = {
  "decode": (LLADA, CONFIDENCE, dict(name="dkv_decode", interval=8, second_full=True)),
  "greedy": (LLADA, PLANNED, dict(name="dkv_greedy", interval=2, window=4)),
  "dream": (DREAM, ENTROPY, dict(name="dkv_decode", interval=4, shift_rule="un")),
  "pd": (DREAM, ENTROPY, dict(name="dkv_pd", interval=4, shift_rule="un")),
}


def get_config(setting: str = "decode") -> ConfigDict:
  lengths, policy, cache = SETTINGS[setting]
  return ConfigDict(dict(policy=policy, cache=cache, align="prompt", stop="never", **lengths))
