r"""SDTT (github.com/jdeschena/sdtt): the demo's model learns to say at once what two steps said.

    make demo
    python experiments/train.py --config=configs/train/sdtt.py --workdir=runs/sdtt
    python experiments/train.py --config=configs/train/sdtt.py --workdir=runs/sdtt_2 \
      --config.init_from=runs/sdtt --config.objective.dt=0.25

A run is a round, the next starts from it with twice the `dt`. The divergence, the two steps and
the doubling are the authors'; theirs are 7 rounds of 10,000 updates from dt = 1 / 1024 on texts of
1024 tokens, here dt = 1 / 8, as answers are 8 tokens. Expected: BENCHMARKS.md, Distillation.
"""

from ml_collections import ConfigDict

LISTS = (
  ("form", "grid"),
  ("items", (4, 4)),
  ("alphabet", "abcdefgh"),
  ("tasks", ("copy", "reverse", "shuffle", "shuffle")),
)


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=300,
      batch=96,
      log_every=50,
      init_from="runs/demo/model",
      objective=dict(name="sdtt", dt=1 / 8),
      data=dict(sources=(("lists", 1.0, LISTS),), length=24, mode="pad", pad="none"),
      optimizer=dict(lr=1e-3, schedule="cosine", warmup=20, weight_decay=0.01),
      eval=dict(every=150, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
