r"""Prophet (arXiv 2508.19982): all at once, as soon as the answer is sure.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/prophet.py --prompt="..."

The README's GSM8K setting: 256 tokens, 256 forwards, blocks of 32, an answer of five tokens behind
slot 203. It was measured with "The answer is" written into slots 200 to 202: with --infill a prompt
can say so, "question[[200]]The answer is[[53]]".
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(
        name="prophet",
        steps=256,
        answer_start=203,
        answer_length=5,
        early=7.5,
        mid=5.0,
        late=2.5,
        inner=dict(name="fixed", steps=32, order="confidence"),
      ),
      cache=dict(name="none"),
      block=32,
      align="prompt",
      max_new_tokens=256,
      stop="never",
    )
  )
