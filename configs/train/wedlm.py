"""A causal model learns to fill masks and stays autoregressive: WeDLM (arXiv 2512.22737).

    python experiments/train.py --config=configs/train/wedlm.py --config.init_from=HF_DIR \
      --workdir=runs/wedlm

HF_DIR: WeDLM-8B-Base, or a Qwen2.5 or Qwen3. The authors' fine-tuning: blocks of 32, one ratio per
block, the mean of both losses, packed rows of 2048 tokens, AdamW at 3e-6 with a tenth of warm-up, a
cosine and weight decay 0.01, one epoch of chats with 8 rows of this length an update. Ours: steps,
and the text, here the standard library. Expected: not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=5000,
      batch=8,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="wedlm", block=32, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=2048),
      optimizer=dict(lr=3e-6, schedule="cosine", warmup=500, weight_decay=0.01),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
