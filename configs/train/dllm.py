"""An autoregressive model becomes a block diffusion model by dllm's trainer (ZHZisZZ/dllm).

    python experiments/train.py --config=configs/train/dllm.py --config.init_from=HF_DIR \
      --workdir=runs/dllm

HF_DIR: Qwen3-0.6B, as in its Tiny-A2D: blocks of 32, rows of 512 tokens, 2048 rows an update,
AdamW at 1e-4, 10 epochs, no shift. `--config.objective.block=None` is its MDLMTrainer (rows of 1024
tokens). Ours: the number of updates, and the text, here the standard library.
Expected: no numbers of a loss are public; not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=10_000,
      batch=2048,
      microbatches=64,
      mesh=dict(data=1, fsdp=-1),
      model=dict(dtype="bfloat16", remat=True),
      objective=dict(name="dllm", block=32, shift=0),
      data=dict(sources=(("stdlib", 1.0),), length=512),
      optimizer=dict(lr=1e-4, schedule="cosine", warmup=1000),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
