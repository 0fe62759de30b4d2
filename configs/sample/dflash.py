r"""DFlash (arXiv 2602.06036): a drafter that reads the model's own layers, and the model verifies.

python experiments/sample.py --checkpoint=AR_DIR --drafter=DRAFTER_DIR \
  --config=configs/sample/dflash.py --prompt="..."

Exact: the text is that of the autoregressive model with the same seed, at any temperature. A
drafter belongs to one model: z-lab's (z-lab/Qwen3-8B-DFlash-b16 for Qwen/Qwen3-8B), or one trained
by configs/train/smollm_dflash.py. The authors': blocks of 16, so 15 drafts a forward, the drafter's
likeliest tokens. --config.policy.draft=coupled draws them with the model's own noise instead: at a
temperature more of them are right.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="dflash", length=15, draft="best"),
      cache=dict(name="rolling"),
    )
  )
