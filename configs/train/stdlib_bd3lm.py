"""BD3-LM (arXiv 2503.09573) over bytes of English text: blocks of 16, as stdlib_mdlm otherwise.

    python experiments/train.py --config=configs/train/stdlib_bd3lm.py --workdir=runs/stdlib_bd3lm

Expected: not measured yet; the paper has blocks of 16 between AR and MDLM. About an hour on 2 busy
CPU cores: a row is read twice, noisy and clean.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      log_every=50,
      model=dict(preset="1m"),
      objective=dict(name="bd3lm", block=16, schedule="linear", ignore_bos=False),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=128),
      optimizer=dict(
        lr=2e-3, schedule="cosine", warmup=100, end_lr=2e-4, weight_decay=0.01, ema=0.999
      ),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
