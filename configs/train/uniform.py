"""An autoregressive model becomes a uniform-state block diffusion model (DiffusionGemma's kind).

    python experiments/train.py --config=configs/train/uniform.py --config.init_from=HF_DIR \
      --workdir=runs/uniform

HF_DIR: Qwen3-4B-Base or its like. NeMo Automodel's noise and loss for DiffusionGemma: random ids,
one level in [0.001, 1] a block, the mean over all noisable tokens; blocks of 256 as its sampler's.
Ours: clean blocks before the noisy one, rows, batch, optimizer, and the text, here the standard
library. Sample with configs/sample/diffusion_gemma.py. Expected: no numbers are public; not run
here.
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
      objective=dict(name="uniform", block=256, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=4096),
      optimizer=dict(lr=1e-5, warmup=600),
      eval=dict(every=1000),
      sample=dict(config="configs/sample/diffusion_gemma.py"),
      checkpoint=dict(every=1000),
    )
  )
