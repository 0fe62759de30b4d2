r"""VRPO (2505.19223) on pairs of a file: the quickstart's model learns which lists are in reverse.

Pairs, {"prompt", "chosen", "rejected"} a line; the run:

    python -c "import json; from dlm.data import open_source; s = open_source('lists',
      tasks=('reverse',), form='grid', items=(4, 4), alphabet='abcdefgh'); print(
      *(json.dumps({'prompt': s[i].prompt, 'chosen': s[i].completion,
      'rejected': s[i].completion[::-1]}) for i in range(4000)), sep='\n')" > runs/pairs.jsonl
    python experiments/train.py --config=configs/train/quickstart.py --config.steps=200 \
      --workdir=runs/quickstart
    python experiments/train.py --config=configs/train/vrpo.py --workdir=runs/vrpo

Eight masks a row, shared with the reference, are the paper's; beta, rate and pairs are ours.
Metrics: margin, preferred. Not yet run to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=200,
      batch=64,
      log_every=10,
      init_from="runs/quickstart",
      objective=dict(name="preference", estimator=dict(name="counted_elbo", draws=8), beta=0.1),
      data=dict(sources=(("pairs:runs/pairs.jsonl", 1.0),), length=22, mode="pad", pad="none"),
      optimizer=dict(lr=3e-4, schedule="constant", warmup=10),
      eval=dict(every=50, batches=4),
      checkpoint=dict(keep_last=1),
    )
  )
