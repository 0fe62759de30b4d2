"""An autoregressive model becomes a block diffusion model, Stable-DiffCoder's way (2601.15892).

    python experiments/train.py --config=configs/train/stable_diffcoder.py \
      --config.init_from=HF_DIR --workdir=runs/stable_diffcoder

HF_DIR: Seed-Coder-8B-Base or another Llama, best before its last annealing. The authors': blocks of
4, rates clipped to [1/4, 1], packed rows of 8192 tokens, no shift, a warm-up of the rates from
1e-3, 1.3T tokens. For fine-tuning they append 1 to 4 end tokens to every example. They do not say
their learning rate, batch, or how long the warm-up is: those are ours, and so is the text, here the
standard library. Expected: not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=20_000,
      batch=128,
      microbatches=16,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="stable_diffcoder", block=4, warmup=1000, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=8192),
      optimizer=dict(lr=1e-5, warmup=600),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
