"""MDLM (arXiv 2406.07524) over bytes of English text: a small model for a CPU.

    python experiments/train.py --config=configs/train/stdlib_mdlm.py --workdir=runs/stdlib_mdlm

Expected: not measured yet. About half an hour on 2 busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      steps=2000,
      batch=32,
      microbatches=1,
      parallel="shard_map",
      log_every=50,
      init_from="",
      mesh=dict(data=-1, fsdp=1, tensor=1, expert=1),
      model=dict(preset="1m", dtype="float32"),
      objective=dict(name="mdlm", schedule="log_linear", times="stratified"),
      data=dict(sources=(("stdlib", 1.0),), tokenizer="byte", length=128, mode="pack"),
      optimizer=dict(
        name="adamw",
        lr=2e-3,
        schedule="cosine",
        warmup=100,
        end_lr=2e-4,
        weight_decay=0.01,
        clip=1.0,
        ema=0.999,
      ),
      eval=dict(every=500, batches=8),
      sample=dict(every=0, config="configs/sample/default.py", prompts=("",)),
      checkpoint=dict(every=500, keep_last=2, keep_best=1),
    )
  )
