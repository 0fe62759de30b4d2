"""BD3-LM (arXiv 2503.09573) on lists to copy, reverse and sort: answers are right or wrong.

    python experiments/train.py --config=configs/train/lists_bd3lm.py --workdir=runs/lists_bd3lm

Expected: not measured yet. About an hour on 2 busy CPU cores.
"""

from ml_collections import ConfigDict

LISTS = (("tasks", ("copy", "reverse", "sort")), ("form", "grid"), ("items", (3, 6)))


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      log_every=50,
      model=dict(preset="1m"),
      objective=dict(name="bd3lm", block=16, schedule="linear"),
      data=dict(sources=(("lists", 1.0, LISTS),), tokenizer="byte", length=128, mode="pad"),
      optimizer=dict(
        lr=2e-3, schedule="cosine", warmup=100, end_lr=2e-4, weight_decay=0.01, ema=0.999
      ),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
