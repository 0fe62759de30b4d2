"""DreamOn (arXiv 2602.01326): fills a hole whose length nobody knows, and grows or shrinks it.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dreamon.py --infill \
  --prompt="def mean(xs): [[4]] / len(xs)"

`[[4]]` is a first guess of 4 tokens. The authors' evaluation: one token a forward by entropy,
temperature 0.2, top-p 0.9, up to 64 tokens, up to 256 forwards, first guesses of 4 to 64.
DreamOn-v0-7B is read as the Dream that it is; 151667 is its expand token.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="dreamon", expand_id=151667, most=64),
      cache=dict(name="none"),
      block=128,
      align="prompt",
      max_forwards=256,
      temperature=0.2,
      top_p=0.9,
      bos=True,
      stop="never",
    )
  )
