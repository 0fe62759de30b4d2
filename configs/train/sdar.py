"""An autoregressive model becomes a block diffusion model, SDAR's way (arXiv 2510.06303).

    python experiments/train.py --config=configs/train/sdar.py --config.init_from=HF_DIR \
      --workdir=runs/sdar

HF_DIR: Qwen3-4B-Base or its like. The authors': blocks of 4, one noise level a document, no shift,
no annealing, learning rate 1e-5 after 3 % of warm-up, bfloat16, rows of 20480 tokens, 50B tokens of
pre-training and 4B of fine-tuning (with mode="pad", per_row and pad="none" chats fill their last
blocks as theirs do). Ours: batch, weight decay, and the text, here the standard library.
Expected: the authors' tables are images; not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=20_000,
      batch=128,
      microbatches=16,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="sdar", block=4, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=20480),
      optimizer=dict(lr=1e-5, warmup=600),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
