r"""Sparse-dLLM (arXiv 2508.02558): half of the keys around the block, chosen in its second forward.

python experiments/sample.py --checkpoint=DIR --config=configs/sample/sparse_dllm.py --prompt="..."

LLaDA's sampler in blocks of 32, a token a forward. dLLM-Serve's cache, where every head keeps keys
of its own: --config.cache.name=head_sparse. The authors' class keeps --config.cache.ratio=0.7
unless told otherwise.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      policy=dict(name="fixed", k=1, order="confidence"),
      cache=dict(name="sparse", ratio=0.5, delay=1),
      block=32,
      align="prompt",
      max_new_tokens=256,
      stop="never",
    )
  )
