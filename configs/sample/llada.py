r"""LLaDA's sampler (arXiv 2502.09992, 2.4): low-confidence remasking, tokens split over steps.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/llada.py --prompt="..."

LLaDA-8B-Instruct's GSM8K setting (EVAL.md): 256 tokens in blocks of 8, one token a forward. Its
other settings: --config.doubt_ends=True (confidence_eos_eot_inf), --config.forbid_ends=True
(logits_eos_inf), --config.guidance=0.5 (cfg_scale), --config.policy.order=random.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="fixed", steps=8, order="confidence", exact_steps=False),
      cache=dict(name="none"),
      block=8,
      align="prompt",
      max_new_tokens=256,
      stop="never",
    )
  )
