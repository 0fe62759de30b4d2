r"""dParallel (czg1225/dParallel): the demo's model is made certain of what it gets right.

    make demo
    python experiments/train.py --config=configs/train/dparallel.py --workdir=runs/dparallel

Rows are the model's own answers, runs/traces.jsonl, as configs/train/d3llm.py says how to write
them. About half of an answer is masked, in a second view the other half. The entropy's weight is
the authors' for LLaDA; their blocks are 32 of 256 tokens, here the whole answer of 8. Learning
rate, batch and updates are ours. Expected: BENCHMARKS.md, Distillation.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=300,
      batch=48,
      log_every=50,
      init_from="runs/demo/model",
      objective=dict(name="dparallel", size=None),
      data=dict(sources=(("traces:runs/traces.jsonl", 1.0),), length=24, mode="pad", pad="none"),
      optimizer=dict(lr=1e-3, schedule="cosine", warmup=20, weight_decay=0.01),
      eval=dict(every=150, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
