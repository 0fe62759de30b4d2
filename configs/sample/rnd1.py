r"""RND1 (RadicalNumerics/RND1): the least certain tokens stay masked, ever fewer of them.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/rnd1.py \
  --prompt=$'Question: What is a prime?\nAnswer:'

The settings of the authors' demo: 256 tokens in 256 forwards, temperature 0.01. Its --eb_gamma=G,
which writes as many tokens as an entropy budget allows, is --config.policy.budget=G.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="rnd1", steps=256),
      cache=dict(name="none"),
      block=256,
      align="prompt",
      max_new_tokens=256,
      temperature=0.01,
      stop="never",
    )
  )
