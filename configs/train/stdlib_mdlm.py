"""MDLM (arXiv 2406.07524) over bytes of English text: a small model for a CPU.

    python experiments/train.py --config=configs/train/stdlib_mdlm.py --workdir=runs/stdlib_mdlm

Expected: not measured yet. About half an hour on 2 busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      log_every=50,
      model=dict(preset="1m"),
      objective=dict(name="mdlm", schedule="log_linear", times="stratified"),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=128),
      optimizer=dict(
        lr=2e-3, schedule="cosine", warmup=100, end_lr=2e-4, weight_decay=0.01, ema=0.999
      ),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
