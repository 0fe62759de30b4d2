"""A diffusion model learns to write blocks ahead of unfinished ones: D2F (arXiv 2508.09192).

    python experiments/train.py --config=configs/train/d2f.py --config.init_from=HF_DIR \
      --workdir=runs/d2f

HF_DIR: LLaDA-8B-Instruct, or Dream's 7B, whose logits stay shifted. The authors': an adapter of
rank 32 on attention, taught by the model without it, which sees the whole noisy text; noise that
rises over the blocks of the answer from 0.2-0.7 to at most 0.7; rows of 512 tokens, blocks of 16,
AdamW at 1e-5 (Dream: 5e-6) with b2 0.95 and weight decay 0.05 for 50,000 updates.
`d2f.py:text` has all weights learn from the text itself, which should then be the model's own
answers. Name your own as a JSONL file: the text, batch and warm-up are ours, and there is no
dropout. Small enough to run here: configs/train/distill_d2f.py.
Expected: over 2.5 times the tokens a second of autoregressive models its size; not run here.
"""

from ml_collections import ConfigDict

ADAPTER = dict(rank=32, alpha=32.0, targets=("query", "key", "value", "out"))
MODELS = {"teacher": dict(lora=ADAPTER), "text": dict(remat=True)}


def get_config(target: str = "teacher") -> ConfigDict:
  return ConfigDict(
    dict(
      steps=50_000,
      batch=64,
      microbatches=8,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", **MODELS[target]),
      objective=dict(name="d2f", block=16, target=target),
      data=dict(sources=(("stdlib", 1.0),), length=512, mode="pad", pad="eos"),
      optimizer=dict(lr=1e-5, warmup=100, b2=0.95, weight_decay=0.05),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
