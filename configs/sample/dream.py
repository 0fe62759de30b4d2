r"""Dream's sampler (arXiv 2508.15487): the tokens of least entropy first, in equal steps of time.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dream.py --prompt="..."

The setting of the authors' README: 512 tokens in one block and as many steps, temperature 0.2,
top-p 0.95. Their evaluation of Dream-Instruct on GSM8K: 256 tokens and steps, temperature 0.1,
top-p 0.9. Fast-dLLM's threshold for Dream: --config.policy.name=dream_threshold.

With --config=configs/sample/dream.py:NAME, the settings of models that are Dreams:

  dream_coder  Dream-Coder-7B-Instruct: 768 tokens and steps, temperature 0.1, top-p 0.95
  diffucoder   DiffuCoder-7B-Instruct and -cpGRPO (arXiv 2506.20639): 256, 0.4, 0.95
"""

from ml_collections import ConfigDict

SETTINGS = {"dream": (512, 0.2), "dream_coder": (768, 0.1), "diffucoder": (256, 0.4)}


def get_config(setting: str = "dream") -> ConfigDict:
  tokens, temperature = SETTINGS[setting]
  return ConfigDict(
    dict(
      policy=dict(
        name="dream", steps=tokens, alg="entropy", alg_temp=0.0, eps=1e-3, exact_steps=False
      ),
      cache=dict(name="none"),
      block=tokens,
      align="prompt",
      max_new_tokens=tokens,
      temperature=temperature,
      top_p=0.95,
      stop="never",
    )
  )
