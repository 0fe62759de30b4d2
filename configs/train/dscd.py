r"""CD4LM's distillation, DSCD (2601.02236): a model of lists learns to say more at once.

    python experiments/train.py --config=configs/train/quickstart.py --workdir=runs/quickstart
    python experiments/train.py --config=configs/train/dscd.py --workdir=runs/dscd
    python experiments/sample.py --checkpoint=runs/dscd --config=configs/sample/cd4lm.py \
      --prompt="rev a b c d = "

Shares of masks, temperature, weights and clamps are the paper's, learning rate and problems ours
(its model is LLaDA-8B on GSM8K, at 5e-6). Its code hides 2 tokens of answers as short as these, 8;
here the shares hold for them too. The teacher is the model that the run starts from;
--config.init_from=HF_DIR takes another. One that never learned to repeat what it sees, as this one,
teaches more with --config.objective.seen=text. Expected: BENCHMARKS.md, Distillation. 2 minutes on
2 CPU cores.
"""

from ml_collections import ConfigDict

LISTS = (
  ("tasks", ("copy", "reverse", "shuffle", "shuffle")),
  ("form", "grid"),
  ("items", (4, 4)),
  ("alphabet", "abcdefgh"),
)
STEPS = 400


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=STEPS,
      batch=128,
      log_every=50,
      init_from="runs/quickstart",
      objective=dict(name="dscd", updates=STEPS, short=(0, 0)),
      data=dict(sources=(("lists", 1.0, LISTS),), length=22, mode="pad", pad="none"),
      optimizer=dict(lr=1e-3, schedule="cosine", warmup=20, weight_decay=0.01),
      eval=dict(every=200, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
