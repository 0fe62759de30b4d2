"""LLaDA-8B: pre-training as in arXiv 2502.09992, 2.2.

    python experiments/train.py --config=configs/train/llada_8b.py --workdir=runs/llada_8b

The paper's: 1280 rows of 4096 tokens, weight decay, and a warm-up of 2000 steps to 4e-4, kept until
1.2T tokens, then 1e-4 for 0.8T, then linearly to 1e-5 over 0.3T. Ours: betas and clipping. Its data
is not public: name your own tokens (experiments/prepare_data.py) and tokenizer; set mesh and
microbatches to what the machine holds.
Expected: the authors' base model scores 65.9 on MMLU, after 0.13M H800-hours. Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      steps=438690,
      batch=1280,
      mesh=dict(data=1, fsdp=-1),
      model=dict(preset="llada-8b", vocab=126464, dtype="bfloat16", remat=True),
      objective=dict(name="llada", random_length=0.01),
      data=dict(
        sources=(("tokens:data/pretrain", 1.0),), tokenizer="saved:data/llada", length=4096
      ),
      optimizer=dict(
        lr=4e-4,
        schedule="stages",
        warmup=2000,
        stages=((226882, 4e-4, 4e-4), (152588, 1e-4, 1e-4), (57220, 1e-4, 1e-5)),
        b2=0.95,
        weight_decay=0.1,
      ),
      eval=dict(every=1000),
      checkpoint=dict(every=1000),
    )
  )
