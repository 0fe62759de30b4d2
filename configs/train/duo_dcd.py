"""A Duo model learns to take larger steps, from itself: DCD (arXiv 2506.10892).

    python experiments/train.py --config=configs/train/duo_dcd.py --config.init_from=runs/duo \
      --workdir=runs/duo_dcd_1

A run is a round of 10,000 updates, whose teacher is the model that it starts from; the next starts
from this one's with twice --config.objective.dt. The authors': 5 rounds from a step of 1/512, 128
rows an update, learning rate 6e-5, evaluated with parameters averaged by 0.999. Ours: the text,
here the standard library. Expected: not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=10_000,
      batch=128,
      microbatches=16,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16"),
      objective=dict(name="duo_dcd", dt=1 / 512, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=1024),
      optimizer=dict(lr=6e-5, warmup=500, ema=0.999),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
