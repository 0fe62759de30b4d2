r"""Dream's sampler (arXiv 2508.15487): the tokens of least entropy first, in equal steps of time.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dream.py --prompt="..."

The setting of the authors' README: 512 tokens in one block and as many steps, temperature 0.2,
top-p 0.95. Their evaluation of Dream-Instruct on GSM8K: 256 tokens and steps, temperature 0.1,
top-p 0.9. Fast-dLLM's threshold for Dream: --config.policy.name=dream_threshold.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(
        name="dream", steps=512, alg="entropy", alg_temp=0.0, eps=1e-3, exact_steps=False
      ),
      cache=dict(name="none"),
      block=512,
      align="prompt",
      max_new_tokens=512,
      temperature=0.2,
      top_p=0.95,
      stop="never",
    )
  )
