"""MD4 (arXiv 2406.04329): masked diffusion over characters, by the authors' recipe for text8.

    python experiments/train.py --config=configs/train/md4.py --workdir=runs/md4

The authors': 12 layers of 768 that are told the time, rows of 256 characters, batch 512, 1M updates
of AdamW at 5e-4 with weight decay 0.03, cosine after 2000 updates, no clipping, EMA 0.9999; dropout
0.05, which there is none of here, and a sigmoid gate. Ours: the text, here bytes of the standard
library. `--config.objective.schedule.name=md4_cosine` or md4_poly are their other curves.
Expected: theirs, text8, at most 1.37 bits a character; not run here. For a look at it on a CPU:
`--config.model.preset=1m --config.steps=8 --config.batch=8 --config.optimizer.warmup=2`.
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
      objective=dict(name="md4", schedule="md4_linear", times="shared_offset"),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=256, document_mask=False),
      optimizer=dict(
        lr=5e-4, schedule="cosine", warmup=2000, weight_decay=0.03, clip=None,
        ema=0.9999, ema_warmup=False,
      ),
      eval=dict(every=5000, batches=100),
      checkpoint=dict(every=5000),
    )
  )  # fmt: skip
