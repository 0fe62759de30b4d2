"""Layers' kernels held apart, for a CPU that decodes.

A scan hands each layer its kernels as slices of the stack, and XLA's CPU backend copies a slice
before it multiplies (findings/scan_copies_each_layer.sh). With few rows a forward does little but
read the weights, so the copy costs as much as the product (BENCHMARKS.md, SmolLM2). Arrays of their
own are read where they are.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from dlm.models.quantised import Codes
from dlm.types import Params
from kernels_pallas import dispatch

# Bytes of weights that a CPU reads from memory at every forward. Less stays in its caches, where a
# copy is cheap, and compiling a branch a layer is not.
STREAMED = 1 << 26


def apart(params: Params, least: int = STREAMED) -> Params:
  """The same tree with a tuple of arrays, one a layer, for each stacked kernel of attention or MLP.

  They are views: no memory but the few KB of kernels that no cache line begins. As it was where the
  kernels have fewer bytes than `least`, or lie on another device than one CPU.
  """
  kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _stacked(path)]
  on_devices = all(isinstance(leaf, jax.Array) for leaf in kernels)
  devices = set().union(*(leaf.devices() for leaf in kernels)) if on_devices else ()
  if len(devices) != 1 or sum(leaf.nbytes for leaf in kernels) < least:
    return params
  (device,) = devices
  if device.platform != "cpu":
    return params

  def cut(path, leaf: jax.Array):
    if not _stacked(path):
      return leaf
    return tuple(jax.device_put(layer, device) for layer in jax.device_get(leaf))

  return jax.tree_util.tree_map_with_path(cut, params)


def collections(params: Params) -> dict[str, Params]:
  """What linen reads: "params", of kernels kept as codes "quantised", of kernels held apart "apart"
  and each turn's "layer".

  On CPUs codes of attention and MLPs are "stacked": products cut their tiles from the whole stack.
  """
  flat = traverse_util.flatten_dict(params)
  on_cpu = dispatch.backend() == "cpu"
  parts = {name: {} for name in ("params", "quantised", "stacked", "apart", "layer")}
  for path, leaf in flat.items():
    if isinstance(leaf, tuple):
      parts["apart"][path], parts["layer"][path] = leaf, jnp.arange(len(leaf))
    elif not isinstance(leaf, Codes):
      parts["params"][path] = leaf
    elif on_cpu and _of_layers(path):
      parts["stacked"][path], parts["layer"][path] = leaf, jnp.arange(len(leaf.codes))
    else:
      parts["quantised"][path] = leaf
  return {name: traverse_util.unflatten_dict(part) for name, part in parts.items() if part}


def _stacked(path: tuple) -> bool:
  """Whether it is such a kernel, as an array."""
  if not all(isinstance(key, jax.tree_util.DictKey) for key in path):
    return False  # of `Codes`
  return _of_layers(tuple(key.key for key in path))


def _of_layers(path: tuple[str, ...]) -> bool:
  """Whether it is a stack that `dlm.models.layers.Einsum` reads; experts are others'."""
  return path[0] in ("layers", "dense_layers") and "moe" not in path and path[-1] == "kernel"
