"""The autoregressive baseline on OpenWebText of arXiv 2406.07524, table 2, and 2503.09573, table 4.

    python experiments/train.py --config=configs/train/owt_ar.py --workdir=runs/owt_ar

Data as in owt_mdlm. Expected: test perplexity 17.54. Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      seed=0,
      steps=1000000,
      batch=512,
      microbatches=4,
      parallel="shard_map",
      log_every=100,
      init_from="",
      mesh=dict(data=-1, fsdp=1, tensor=1, expert=1),
      model=dict(
        width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2048, dtype="bfloat16"
      ),
      objective=dict(name="ar"),
      data=dict(
        sources=(("tfds:openwebtext", 1.0),),
        tokenizer="saved:data/gpt2",
        length=1024,
        mode="pack",
        document_mask=False,
      ),
      optimizer=dict(
        name="adamw",
        lr=3e-4,
        schedule="constant",
        warmup=2500,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        clip=1.0,
        ema=0.9999,
      ),
      eval=dict(every=10000, batches=100),
      sample=dict(every=0, config="configs/sample/default.py", prompts=("",)),
      checkpoint=dict(every=10000, keep_last=2, keep_best=1),
    )
  )
