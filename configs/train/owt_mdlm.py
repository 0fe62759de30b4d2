"""MDLM on OpenWebText: the recipe of arXiv 2406.07524, table 2.

    python experiments/train.py --config=configs/train/owt_mdlm.py --workdir=runs/owt_mdlm

Data: `tfds:openwebtext`, prepared beforehand (the last 100k documents are the paper's test split);
the tokenizer of gpt2, saved in data/gpt2. Documents run on across rows, as the authors pack them.
Expected: test perplexity at most 23.21 after 262B tokens (500k steps; table 2). Not run here.
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
      objective=dict(name="mdlm", schedule="log_linear", times="stratified", min_time=1e-3),
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
