"""Duo (arXiv 2506.10892) on OpenWebText: random ids as noise, at first taught by Gaussian noise.

    python experiments/train.py --config=configs/train/duo.py --workdir=runs/duo

The authors' (scripts/train_owt_duo.sh): 12 layers of 768 that are told the level, rows of 1024,
batch 512, 1M updates of AdamW at 3e-4 after 2500, EMA 0.9999; the curriculum for the first half,
tau 1e-3, gamma from -3.55 to -1.85. Data and tokenizer as configs/train/owt_mdlm.py. Numbers of
shape [rows, 1024, 50258] take 200 MB a row: the loss forms some of a microbatch, the curriculum
three of a device's batch. Expected: not run here. Sample with configs/sample/duo.py. A run of
seconds, over bytes:

    --config.data.sources="(('stdlib', 1.0),)" --config.data.tokenizer=byte --config.steps=12
    --config.data.length=32 --config.model.preset=1m --config.batch=8 --config.microbatches=1
    --config.optimizer.warmup=2 --config.objective.curriculum=6 --config.eval.batches=2
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=1_000_000,
      batch=512,
      microbatches=16,
      log_every=100,
      model=dict(
        width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2048,
        time_conditioned=True, dtype="bfloat16",
      ),
      objective=dict(
        name="duo", schedule="log_linear", times="stratified",
        curriculum=500_000, tau=(1e-3, 1e-3), gamma=(-3.55, -1.85),
      ),
      data=dict(
        sources=(("tfds:openwebtext", 1.0),),
        tokenizer="saved:data/gpt2",
        length=1024,
        document_mask=False,
      ),
      optimizer=dict(lr=3e-4, warmup=2500, ema=0.9999),
      eval=dict(every=10000, batches=100),
      sample=dict(config="configs/sample/duo.py"),
      checkpoint=dict(every=10000),
    )
  )  # fmt: skip
