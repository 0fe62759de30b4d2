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
      seed=0,
      steps=20_000,
      batch=128,
      microbatches=16,
      parallel="shard_map",
      log_every=10,
      init_from="",
      mesh=dict(data=1, fsdp=-1, tensor=1, expert=1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="uniform", block=256, shift=0),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="", length=4096, mode="pack"),
      optimizer=dict(
        name="adamw",
        lr=1e-5,
        schedule="constant",
        warmup=600,
        weight_decay=0.0,
        clip=1.0,
      ),
      eval=dict(every=1000, batches=8),
      sample=dict(every=0, config="configs/sample/diffusion_gemma.py", prompts=("",)),
      checkpoint=dict(every=1000, keep_last=2, keep_best=1),
    )
  )
