r"""A server of a model that sees all of its sequence (LLaDA, Dream), with Fast-dLLM's dual cache.

python experiments/serve.py --checkpoint=DIR --config=configs/serve/full_sequence.py

A row computes its whole canvas when it enters a block, and the block alone from then on. Two rows
of a tile do the former at a time, while the others go on (dLLM-Serve, arXiv 2512.17077); a budget
(--config.serving.limits.budget) bounds it further. Any cache that is filled anew now and then may
stand here: --config.sampling.cache.name=dkv_decode, prefix, vicinity, interval.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      sampling=dict(
        policy=dict(name="threshold", threshold=0.9),
        cache=dict(name="dual"),
        block=32,
        refresh_rows=2,
      ),
      serving=dict(rows=16, row_tile=8, fill=0, constraints=True),
    )
  )
