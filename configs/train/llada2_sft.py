"""Supervised fine-tuning of LLaDA2.0 (arXiv 2512.15745) as dFactory does it.

    python experiments/train.py --config=configs/train/llada2_sft.py --config.init_from=HF_DIR \
      --workdir=runs/llada2_sft

HF_DIR: LLaDA2.0-mini. dFactory's: blocks of 32, a noise level of 0.3 to 0.8 an example, the answer
with its EOS padding, no weights, AdamW at 1e-5 with 3 % of warm-up, weight decay 0.1. Its
confidence-aware run adds objective.confidence=2. Ours: rows, batch, steps, and the text, here the
standard library: name your own chats.
Expected: not run here; the authors' mini model scores 70.15 over their tasks at 2.55 tokens a
forward.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=5000,
      batch=64,
      microbatches=8,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="llada2_sft", block=32, window=(0.3, 0.8)),
      data=dict(sources=(("stdlib", 1.0),), length=2048, mode="pad", pad="eos"),
      optimizer=dict(lr=1e-5, schedule="cosine", warmup=150, weight_decay=0.1),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
