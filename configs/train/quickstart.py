"""The notebook colab/quickstart.ipynb: LLaDA's bound (arXiv 2502.09992, Eq. 6) on lists of letters.

    python experiments/train.py --config=configs/train/quickstart.py --workdir=runs/quickstart

Expected: 0.22 nats per token, where no model gets below ln(23) / 16 = 0.196. Of held-out problems,
one token at a time, every reversal and 98 % of the shuffles right. A minute on 2 CPU cores.
"""

from ml_collections import ConfigDict

LISTS = (
  ("tasks", ("copy", "reverse", "shuffle", "shuffle")),  # the hardest twice as often
  ("form", "grid"),
  ("items", (4, 4)),
  ("alphabet", "abcdefgh"),
)


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      steps=700,
      batch=128,
      microbatches=1,
      parallel="shard_map",
      log_every=50,
      init_from="",
      mesh=dict(data=-1, fsdp=1, tensor=1, expert=1),
      model=dict(width=64, layers=3, heads=4, kv_heads=4, head_dim=16, mlp=192, dtype="float32"),
      objective=dict(name="exact_count"),
      data=dict(
        sources=(("lists", 1.0, LISTS),),
        tokenizer="byte",
        length=22,  # 14 of the prompt, 7 of the answer, one to end it
        mode="pad",
        pad="none",
      ),
      optimizer=dict(
        name="adamw", lr=6e-3, schedule="cosine", warmup=50, weight_decay=0.01, clip=1.0, ema=0.99
      ),
      eval=dict(every=175, batches=4),
      sample=dict(every=0, config="configs/sample/default.py", prompts=("",)),
      checkpoint=dict(every=0, keep_last=1, keep_best=1),
    )
  )
