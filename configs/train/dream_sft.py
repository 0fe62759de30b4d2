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
      seed=0,
      steps=5000,
      batch=256,
      microbatches=16,
      parallel="shard_map",
      log_every=10,
      init_from="",
      mesh=dict(data=1, fsdp=-1, tensor=1, expert=1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="dream_sft", weight="cart", cart_p=0.1),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="", length=1024, mode="pad", pad="eos"),
      optimizer=dict(
        name="adamw",
        lr=1e-5,
        schedule="cosine",
        warmup=500,
        end_lr=0.0,
        b2=0.95,
        weight_decay=0.01,
        clip=1.0,
      ),
      eval=dict(every=500, batches=8),
      sample=dict(every=0, config="configs/sample/default.py", prompts=("",)),
      checkpoint=dict(every=500, keep_last=2, keep_best=1),
    )
  )
