"""A run of seconds, for smoke tests: MDLM (arXiv 2406.07524) over bytes of English text.

    python experiments/train.py --config=configs/train/tiny.py --workdir=/tmp/tiny

Expected: the loss falls from 5.6 to below 4 nats a byte. 10 s on 2 CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=60,
      batch=8,
      model=dict(width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp=64),
      objective=dict(name="mdlm", schedule="log_linear", times="stratified"),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=32),
      optimizer=dict(lr=1e-2, warmup=5, ema=0.99),
      eval=dict(every=30, batches=2),
      checkpoint=dict(every=30),
    )
  )
