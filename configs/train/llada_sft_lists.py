"""LLaDA's supervised fine-tuning (arXiv 2502.09992, 2.3) on lists to copy, reverse and sort.

    python experiments/train.py --config=configs/train/llada_sft_lists.py --workdir=runs/llada_sft

The answer's EOS padding is noised and learned, the prompt never noised; each row's loss is divided
by its answer length. Expected: not measured yet. About half an hour on 2 busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      steps=2000,
      batch=32,
      microbatches=1,
      parallel="shard_map",
      log_every=50,
      init_from="",
      mesh=dict(data=-1, fsdp=1, tensor=1, expert=1),
      model=dict(preset="1m", dtype="float32"),
      objective=dict(name="llada_sft"),
      data=dict(
        sources=(
          (
            "lists",
            1.0,
            (("tasks", ("copy", "reverse", "sort")), ("form", "grid"), ("items", (3, 6))),
          ),
        ),
        tokenizer="byte",
        length=128,
        mode="pad",
        pad="eos",
      ),
      optimizer=dict(
        name="adamw",
        lr=2e-3,
        schedule="cosine",
        warmup=100,
        end_lr=2e-4,
        weight_decay=0.01,
        clip=1.0,
        ema=0.999,
      ),
      eval=dict(every=500, batches=8),
      sample=dict(every=0, config="configs/sample/default.py", prompts=("",)),
      checkpoint=dict(every=500, keep_last=2, keep_best=1),
    )
  )
