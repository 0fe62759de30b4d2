"""BD3-LM on OpenWebText: the recipe of arXiv 2503.09573, table 4, blocks of 16.

    python experiments/train.py --config=configs/train/owt_bd3lm.py --workdir=runs/owt_bd3lm

Data as in owt_mdlm. The authors train 850k steps with one block a row, then 150k with the block
wanted; this table trains with that block throughout.
Expected: near the paper's test perplexities, at most 22.27 with blocks of 16, 21.68 with 8 and
20.73 with 4 after 524B tokens. Not run here.
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
      objective=dict(name="bd3lm", block=16, schedule="linear", times="stratified"),
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
