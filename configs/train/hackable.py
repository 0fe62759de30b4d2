"""hackable_diffusion's losses (google/hackable_diffusion) over bytes of English text, on a CPU.

    python experiments/train.py --config=configs/train/hackable.py --workdir=runs/hackable

`--config.objective.noise=uniform --config.objective.noised_only=false
--config.objective.weighted=false` is its uniform process with its loss without weights. The library
has no recipe for text: everything but the loss is ours. Expected: not measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=2000,
      batch=32,
      log_every=50,
      model=dict(preset="1m", time_conditioned=True),
      objective=dict(name="hackable", noise="mask", schedule=dict(name="mdlm_cosine", eps=0.0)),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=128),
      optimizer=dict(lr=2e-3, schedule="cosine", warmup=100, end_lr=2e-4, ema=0.999),
      eval=dict(every=500),
      checkpoint=dict(every=500),
    )
  )
