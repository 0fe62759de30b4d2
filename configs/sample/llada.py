r"""LLaDA's sampler (arXiv 2502.09992, 2.4): low-confidence remasking, tokens split over steps.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada.py --prompt="..."

LLaDA-8B-Instruct's GSM8K setting (EVAL.md): 256 tokens in blocks of 8, one token a forward. Its
other settings: --config.doubt_ends=True (confidence_eos_eot_inf), --config.forbid_ends=True
(logits_eos_inf), --config.guidance=0.5 (cfg_scale), --config.policy.order=random.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.policy = ConfigDict(
    {
      "name": "fixed",
      "steps": 8,
      "order": "confidence",
      "exact_steps": False,
    }
  )
  config.cache = ConfigDict({"name": "none"})
  config.commit = "fused"
  config.block = 8
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
