r"""Fast-dLLM v2 (arXiv 2509.26328): blocks written in parts of 8, with both its caches.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/fast_dllm_v2.py --prompt="..."

The settings of the authors' demo; confidence > 0.9 there, >= 0.9 here. The forward that commits a
block writes the first token of the next. cache.name=block computes whole blocks.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="parts", size=8, inner=dict(name="threshold", threshold=0.9)),
      cache=dict(name="sub_block", size=8),
      commit="separate",
      confidence="shaped",
    )
  )
