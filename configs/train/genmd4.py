"""GenMD4 (arXiv 2406.04329): MD4 over characters, and which of them are masked early is learned.

    python experiments/train.py --config=configs/train/genmd4.py --workdir=runs/genmd4

As configs/train/md4.py, with the authors' learning rate of 3e-4 for it. The powers of all ids are
parameters of the objective, which the log shows as power_min, power_mean and power_max.
Expected: theirs, text8, at most 1.34 bits a character (MD4 1.37); not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=1_000_000,
      batch=512,
      log_every=100,
      model=dict(
        width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2048,
        time_conditioned=True, dtype="bfloat16",
      ),
      objective=dict(name="genmd4", times="shared_offset"),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=256, document_mask=False),
      optimizer=dict(
        lr=3e-4, schedule="cosine", warmup=2000, weight_decay=0.03, clip=None,
        ema=0.9999, ema_warmup=False,
      ),
      eval=dict(every=5000, batches=100),
      checkpoint=dict(every=5000),
    )
  )  # fmt: skip
