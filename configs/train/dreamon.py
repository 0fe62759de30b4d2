"""Dream learns to fill holes whose length it is not told: DreamOn (arXiv 2602.01326).

    python experiments/train.py --config=configs/train/dreamon.py --config.init_from=HF_DIR \
      --workdir=runs/dreamon

HF_DIR: Dream-Coder-v0-Base-7B. The authors': end tokens 0 to 63, merging with probability 0.5,
rows of 1024 tokens that end in padding, 128 rows an update, AdamW at 1e-5, betas 0.9 and 0.95,
weight decay 0.01, a tenth of warm-up, 5 epochs of opencoder's instructions; holes are whole lines.
151667 is an unused id of Dream's vocabulary. Ours: steps, holes of any tokens, and the text, here
the standard library. Expected: not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=5000,
      batch=128,
      microbatches=16,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="dreamon", expand_id=151667),
      data=dict(sources=(("stdlib", 1.0),), length=1024, mode="pad", pad="none"),
      optimizer=dict(lr=1e-5, schedule="cosine", warmup=500, b2=0.95, weight_decay=0.01),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
