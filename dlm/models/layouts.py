"""Kernels lie in a TPU's memory as its products read them.

XLA's TPU backend multiplies by the kernels of queries, keys and values, [D, N, H], a head at a
time, and would copy their stacks at every call: 3.2 of LLaDA-8B's 16 GB (BENCHMARKS.md, Memory). So
they are laid with heads before inputs when they are read. Shapes, and with them checkpoints, stay.
"""

import jax
from jax.experimental.layout import Format, Layout

from dlm.types import Params

BACKEND = "tpu"
HEADS_FIRST = Layout((0, 2, 1, 3))  # of [Y, D, N, H]


def by_head(path: tuple, leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
  """Whether this leaf of the parameters is a stack of such kernels; `Codes` are none."""
  names = [getattr(key, "key", None) for key in path]
  return leaf.ndim == 4 and names[-1] == "kernel" and names[-2] in ("query", "key", "value")


def laid(params: Params) -> Params:
  """The same arrays, to sample with; what lies elsewhere than on TPUs stays as it is."""

  def put(path: tuple, leaf: jax.Array) -> jax.Array:
    (backend,) = {device.platform for device in leaf.devices()}
    if backend != BACKEND or not by_head(path, leaf):
      return leaf
    # Compiled, since `jax.device_put` takes no array of several processes.
    return jax.jit(lambda x: x, out_shardings=Format(HEADS_FIRST, leaf.sharding))(leaf)

  return jax.tree_util.tree_map_with_path(put, params)
