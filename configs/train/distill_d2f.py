r"""D2F's distillation (2508.09192), small: the demo's model learns to write in blocks of four.

    make demo
    python experiments/train.py --config=configs/train/distill_d2f.py --workdir=runs/distill_d2f
    python experiments/sample.py --checkpoint=runs/distill_d2f --config=configs/sample/d2f.py \
      --config.max_new_tokens=8 --prompt="rev a b c d = "

The student's blocks see no later block; its teacher, the model that it starts from, sees all of
the same noisy text. `distill_d2f.py:text` learns from the text instead. Noise and its rise are the
authors', whose blocks are 16 of 512 tokens, here 4 of an answer's 8; rate and updates are ours.
Expected, with --config.slots=24: copies and reversals right, in 2 forwards each; 79 % of shuffles,
at 1.6 tokens a forward (METHODS.md, D2F).
"""

from ml_collections import ConfigDict

LISTS = (
  ("form", "grid"),
  ("items", (4, 4)),
  ("alphabet", "abcdefgh"),
  ("tasks", ("copy", "reverse", "shuffle", "shuffle")),
)


def get_config(target: str = "teacher") -> ConfigDict:
  return ConfigDict(
    dict(
      steps=300,
      batch=96,
      log_every=50,
      init_from="runs/demo/model",
      objective=dict(name="d2f", block=4, target=target),
      data=dict(sources=(("lists", 1.0, LISTS),), length=24, mode="pad", pad="none"),
      optimizer=dict(lr=1e-3, schedule="cosine", warmup=20, weight_decay=0.01),
      eval=dict(every=150, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
