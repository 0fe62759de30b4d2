"""LLaDA's supervised fine-tuning (arXiv 2502.09992, 2.3) on lists to copy, reverse and sort.

    python experiments/train.py --config=configs/train/llada_sft_lists.py --workdir=runs/llada_sft

The answer's EOS padding is noised and learned, the prompt never noised; each row's loss is divided
by its answer length. Expected: not measured yet. About half an hour on 2 busy CPU cores.
"""

from ml_collections import ConfigDict

LISTS = (("tasks", ("copy", "reverse", "sort")), ("form", "grid"), ("items", (3, 6)))


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      log_every=50,
      model=dict(preset="1m"),
      objective=dict(name="llada_sft"),
      data=dict(
        sources=(("lists", 1.0, LISTS),), tokenizer="byte", length=128, mode="pad", pad="eos"
      ),
      optimizer=dict(
        lr=2e-3, schedule="cosine", warmup=100, end_lr=2e-4, weight_decay=0.01, ema=0.999
      ),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
