"""The notebook colab/quickstart.ipynb: LLaDA's bound (arXiv 2502.09992, Eq. 6) on lists of letters.

    python experiments/train.py --config=configs/train/quickstart.py --workdir=runs/quickstart

Expected: 0.22 nats per token, where no model gets below ln(23) / 16 = 0.196. Of held-out problems,
one token at a time, every reversal and 98 % of the shuffles right. A minute on 2 CPU cores.
"""

from ml_collections import ConfigDict

LISTS = (
  ("tasks", ("copy", "reverse", "shuffle", "shuffle")),  # the hardest twice as often
  ("form", "grid"),
  ("items", (4, 4)),
  ("alphabet", "abcdefgh"),
)


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=700,
      batch=128,
      log_every=50,
      model=dict(width=64, layers=3, heads=4, kv_heads=4, head_dim=16, mlp=192),
      objective=dict(name="exact_count"),
      data=dict(
        sources=(("lists", 1.0, LISTS),), tokenizer="byte", length=22, mode="pad", pad="none"
      ),
      optimizer=dict(lr=6e-3, schedule="cosine", warmup=50, weight_decay=0.01, ema=0.99),
      eval=dict(every=175, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
