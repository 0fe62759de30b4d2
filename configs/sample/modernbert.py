"""ModernBERT as a masked diffusion model, by dllm (ZHZisZZ/dllm, examples/bert).

python experiments/sample.py --checkpoint=DIR --config=configs/sample/modernbert.py --prompt="..."

Its settings: 128 tokens in 128 forwards, blocks of 32, the surest token first, greedy. A model that
chats is made of the encoder with configs/train/dllm.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="fixed", steps=32, order="confidence"),
      cache=dict(name="none"),
      block=32,
      max_new_tokens=128,
    )
  )
