"""The autoregressive baseline on OpenWebText of arXiv 2406.07524, table 2, and 2503.09573, table 4.

    python experiments/train.py --config=configs/train/owt_ar.py --workdir=runs/owt_ar

Data as in owt_mdlm. Expected: test perplexity 17.54. Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=1000000,
      batch=512,
      microbatches=4,
      log_every=100,
      model=dict(
        width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2048, dtype="bfloat16"
      ),
      objective=dict(name="ar"),
      data=dict(
        sources=(("tfds:openwebtext", 1.0),),
        tokenizer="saved:data/gpt2",
        length=1024,
        document_mask=False,
      ),
      optimizer=dict(lr=3e-4, warmup=2500, ema=0.9999),
      eval=dict(every=10000, batches=100),
      checkpoint=dict(every=10000),
    )
  )
