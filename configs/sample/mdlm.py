"""MDLM's ancestral sampler (arXiv 2406.07524, 3.2.3): a draw of the model in a random order.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/mdlm.py --prompt="..."
One block holds all new tokens; more steps mean fewer tokens decided together.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="ancestral", steps=128, schedule="log_linear"),
      block=128,
      align="prompt",
      max_new_tokens=128,
      temperature=1.0,
    )
  )
