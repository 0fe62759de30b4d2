"""Fine-tuning of LLaDA2.2 (inclusionAI/LLaDA2.X): it learns to edit the drafts that it makes.

    python experiments/train.py --config=configs/train/llada22.py --config.init_from=HF_DIR \
      --workdir=runs/llada22

HF_DIR: LLaDA2.2-flash, whose ids of edits these are; another model needs two ids of its own that no
text holds. The report tells the labels, no numbers: level, optimizer and the rest are those of
configs/train/llada2_sft.py, and two forwards an update.
Expected: not run here.
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
      objective=dict(name="llada22", block=32, insert_id=156931, delete_id=156930),
      data=dict(sources=(("stdlib", 1.0),), length=2048, mode="pad", pad="eos"),
      optimizer=dict(lr=1e-5, schedule="cosine", warmup=150, weight_decay=0.1),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
