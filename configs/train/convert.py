"""A small autoregressive model, and four ways to make it a diffusion model (arXiv 2512.14067).

    python -m experiments.studies.convert --workdir=runs/convert

trains them all. One alone: python experiments/train.py --config=configs/train/convert.py:NAME
--workdir=DIR, a conversion with --config.init_from=DIR_OF_AR. NAME:

  ar      the model that is converted
  full    a: it sees everything, masked or not
  noisy   b: blocks see the blocks before as they are, masked or not
  clean   c: blocks see clean blocks before, by [noisy; clean] rows
  tilted  d: c, later tokens of a block masked more often

A row is a list problem of 24 bytes and an answer of 16, two blocks of 8. No token shift, as the
paper has it. Rows, model, rates: ours. Expected, all that are trained by 3 seeds: 1007 s on 2 busy
cores, 818 s of CPU; accuracy one token at a time 99 % (ar), 48, 83, 93, 87 % (BENCHMARKS.md).
"""

from ml_collections import ConfigDict

BLOCK = 8
WAYS = {
  "full": dict(block=None, half_life=None),
  "noisy": dict(block=BLOCK, half_life=None, context="noisy"),
  "clean": dict(block=BLOCK, half_life=None, context="clean"),
  "tilted": dict(block=BLOCK, half_life=0.1, context="clean"),
}
LISTS = (
  ("mode", "pad"),
  ("pad", "none"),
  ("form", "grid"),
  ("items", (8, 8)),
  ("alphabet", "abcdefghijkl"),
  ("tasks", ("copy", "reverse", "sort", "remove_index", "shuffle")),
)


def get_config(name: str = "ar") -> ConfigDict:
  ar = name == "ar"
  return ConfigDict(
    dict(
      steps=400 if ar else 150,
      batch=64,
      log_every=50,
      model=dict(width=96, layers=3, heads=4, kv_heads=4, head_dim=24, mlp=256, qk_norm=True),
      objective=dict(name="ar") if ar else dict(name="efficient_dlm", shift=0, **WAYS[name]),
      data=dict(sources=(("lists", 1.0, LISTS),), tokenizer="byte", length=40),
      optimizer=dict(
        lr=3e-3 if ar else 2e-3,
        schedule="cosine",
        warmup=50 if ar else 10,
        weight_decay=0.01 if ar else 0.0,
      ),
      eval=dict(every=200 if ar else 0, batches=4),
      checkpoint=dict(keep_last=1, keep_best=0),
    )
  )
