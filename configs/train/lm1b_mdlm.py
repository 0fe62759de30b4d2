"""MDLM on LM1B: the recipe of arXiv 2406.07524, table 1 and configs/config.yaml of its code.

    python experiments/train.py --config=configs/train/lm1b_mdlm.py --workdir=runs/lm1b_mdlm

Data: `tfds:lm1b`, prepared beforehand; the tokenizer of bert-base-uncased, saved in
data/bert-base-uncased. One sentence a row, cut or padded to 128; padding is not scored. The paper's
DiT has biases, LayerNorm and a 4x GELU; ours is a LLaMA layer of the same width, so numbers are
near, not equal.
Expected: test perplexity at most 27.04 after 33B tokens (500k steps) and 23.00 after 327B (5M
steps; table 1). Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=1000000,
      batch=512,
      log_every=100,
      model=dict(
        width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2048, dtype="bfloat16"
      ),
      objective=dict(name="mdlm", schedule="log_linear", times="stratified", min_time=1e-3),
      data=dict(
        sources=(("tfds:lm1b", 1.0),),
        tokenizer="saved:data/bert-base-uncased",
        length=128,
        mode="pad",
        pad="none",
      ),
      optimizer=dict(lr=3e-4, warmup=2500, ema=0.9999),
      eval=dict(every=10000, batches=100),
      checkpoint=dict(every=10000),
    )
  )
