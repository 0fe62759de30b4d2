"""Supervised fine-tuning of Dream (arXiv 2508.15487) as Dream-Coder's trainer does it.

    python experiments/train.py --config=configs/train/dream_sft.py --config.init_from=HF_DIR \
      --workdir=runs/dream_sft

HF_DIR: Dream-v0-Base-7B. The trainer's: AdamW at 1e-5, betas 0.9 and 0.95, weight decay 0.01,
10 % of warm-up, 256 rows, 3 epochs, EOS padding learned. Its weights are 1/t unless CART is asked
for, as here. Ours: rows, steps, and the text, here the standard library: name your own chats.
Expected: not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=5000,
      batch=256,
      microbatches=16,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="dream_sft", weight="cart", cart_p=0.1),
      data=dict(sources=(("stdlib", 1.0),), length=1024, mode="pad", pad="eos"),
      optimizer=dict(lr=1e-5, schedule="cosine", warmup=500, b2=0.95, weight_decay=0.01),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
