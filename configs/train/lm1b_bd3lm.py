"""BD3-LM on LM1B: the recipe of arXiv 2503.09573, table 3 (blocks of 16; 8 and 4 by --config).

    python experiments/train.py --config=configs/train/lm1b_bd3lm.py --workdir=runs/lm1b_bd3lm

Data as in lm1b_mdlm, but packed. The authors train 850k steps with one block a row, then 150k with
the block wanted; this table trains with that block throughout.
Expected: near the paper's test perplexities, at most 30.60 with blocks of 16, 29.83 with 8 and
28.23 with 4 after 65B tokens. Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=1000000,
      batch=512,
      log_every=100,
      model=dict(
        width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2048, dtype="bfloat16"
      ),
      objective=dict(name="bd3lm", block=16, schedule="linear", times="stratified"),
      data=dict(
        sources=(("tfds:lm1b", 1.0),), tokenizer="saved:data/bert-base-uncased", length=128
      ),
      optimizer=dict(lr=3e-4, warmup=2500, ema=0.9999),
      eval=dict(every=10000, batches=100),
      checkpoint=dict(every=10000),
    )
  )
