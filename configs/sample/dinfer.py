r"""dInfer (arXiv 2510.08666): smoothed inputs over the vicinity cache, by a threshold that falls.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/dinfer.py --prompt="..."

The settings of its evaluation guide for LLaDA-MoE: 1024 tokens in blocks of 64, cut from slot 0.
Its other decoders stand in the place of the inner policy: --config.policy.inner.name=hierarchy
(threshold 0.92, low 0.62, decay 0.02), or credit, which has an inner one itself.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(
        name="smooth",
        start=0.15,
        growth=0.02,
        limit=0.3,
        inner=dict(name="threshold", threshold=0.8, decay=0.02, band=1e-5),
      ),
      cache=dict(name="vicinity", before=16, after=16, warmup=4),
      block=64,
      align="canvas",
      max_new_tokens=1024,
      stop="fill_block",
    )
  )
