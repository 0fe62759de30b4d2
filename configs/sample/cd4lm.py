r"""CD4LM's confidence-adaptive decoding (arXiv 2601.02236).

python experiments/sample.py --checkpoint=DIR --config=configs/sample/cd4lm.py --prompt="..."

The evaluation scripts' setting for mathematics: threshold 0.95, 1 to 32 tokens a forward, blocks of
32, end tokens not before 30 % of 256 tokens.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(
        name="cad",
        threshold=0.95,
        least=1,
        most=32,
        order="confidence",
        end_after=0.3,
        max_steps=32,
      ),
      cache=dict(name="none"),
      block=32,
      align="prompt",
      max_new_tokens=256,
      stop="never",
    )
  )
