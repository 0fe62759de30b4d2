"""The autoregressive baseline over bytes of English text, as stdlib_mdlm otherwise.

    python experiments/train.py --config=configs/train/stdlib_ar.py --workdir=runs/stdlib_ar

Expected: not measured yet; in the papers' tables (arXiv 2503.09573, table 3) AR is below the bounds
of BD3-LM and MDLM. About half an hour on 2 busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      log_every=50,
      model=dict(preset="1m"),
      objective=dict(name="ar"),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=128),
      optimizer=dict(
        lr=2e-3, schedule="cosine", warmup=100, end_lr=2e-4, weight_decay=0.01, ema=0.999
      ),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
