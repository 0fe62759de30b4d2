r"""Efficient-DLM (arXiv 2512.14067): blocks on clean context, all that is surer than 0.9.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/efficient_dlm.py \
  --prompt="..."

No code is public: threshold and blocks (16 for 1.5B, 64 for 4B and 8B) are our reading of it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="threshold", threshold=0.9),
      cache=dict(name="block"),
    )
  )
