"""Published weights go on as a diffusion model, DiffuLLaMA's way (arXiv 2410.17891).

    python experiments/train.py --config=configs/train/adapt.py --config.init_from=HF_DIR \
      --workdir=runs/adapt

HF_DIR: Qwen2.5-0.5B, or any other directory or checkpoint folder; model and tokenizer are its own.
An autoregressive one gets a mask token, keeps predicting the next token (objective.shift, set from
it), and its attention opens from causal to full over objective.anneal updates. Text: a JSONL file
of {"text": "..."}, here the standard library. Expected: not measured yet; 0.5B parameters with
moments in float32 want 8 GB, and on 2 CPU cores minutes an update.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=20_000,
      batch=256,
      microbatches=8,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="diffullama", anneal=10_000),
      data=dict(sources=(("stdlib", 1.0),), length=1024),
      optimizer=dict(lr=3e-4, schedule="cosine", warmup=2000),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
