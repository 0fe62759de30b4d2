"""A diffusion model learns to write blocks ahead of unfinished ones: D2F (arXiv 2508.09192).

    python experiments/train.py --config=configs/train/d2f.py --config.init_from=HF_DIR \
      --workdir=runs/d2f

HF_DIR: LLaDA-8B-Instruct, or Dream's 7B, whose logits stay shifted. The authors': noise that rises
over the blocks of the answer from 0.2-0.7 to at most 0.7, AdamW with b2 0.95 and weight decay 0.05,
and a teacher, which is the model with full attention; they train an adapter. Here all weights learn
from the text itself, which should be the model's own answers: name your own as a JSONL file.
Ours: blocks, rows, batch, learning rate and steps.
Expected: over 2.5 times the tokens a second of autoregressive models its size; not run here.
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
      objective=dict(name="d2f", block=32),
      data=dict(sources=(("stdlib", 1.0),), length=1024, mode="pad", pad="eos"),
      optimizer=dict(lr=1e-5, warmup=100, b2=0.95, weight_decay=0.05),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
