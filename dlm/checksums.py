"""What is in a tree of arrays, however they are sharded: a checksum of each, is all finite?"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlm.types import Array

PIECE = 2**20  # elements mixed at a time; XLA for CPUs keeps two words of each
FEW = 2**16  # elements that the host sums: to compile a program for their shape would take longer


def checksums(tree: Any) -> dict[str, int]:
  """Checksum of every leaf by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(jax.tree.map(_checksum, tree)))
  return {name_of(path): int(x) for path, x in leaves}


def not_finite(tree: Any) -> str | None:
  """Path of the first leaf with a NaN or an infinity; None: all numbers are finite."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  floats = [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
  good = jax.device_get([_finite(x) for _, x in floats])
  wrong = (path for (path, _), is_good in zip(floats, good, strict=True) if not is_good)
  return next((name_of(path) for path in wrong), None)


def _finite(x: Array | np.ndarray) -> Array | np.bool:
  here = isinstance(x, np.ndarray) or x.is_fully_addressable
  if here and x.size <= FEW:
    return np.isfinite(np.asarray(x)).all()
  return _all_finite(x)


@jax.jit
def _all_finite(x: Array) -> Array:
  """By a sum of noughts, which a NaN or an infinity makes a NaN.

  XLA for CPUs would keep a byte of each element to ask all of them, and four if one program asked
  two leaves; its maximum of floats passes over NaN (findings/max_passes_over_nan.sh).
  """
  return jnp.isfinite((x * 0).sum())


def name_of(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _checksum(x: Array) -> Array | np.uint32:
  """Sum modulo 2^32 of every element's bits, mixed with its index.

  The mix is a bijection for a given index, so one wrong element is always seen, and several go
  unseen once in 2^32. Integer sums do not depend on their order, nor thus on pieces and shards.
  """
  if x.is_fully_addressable and x.size <= FEW:
    return _sum_on_host(np.asarray(x))
  rows, piece = _pieces(x)
  total = jnp.uint32(0)
  for at in range(0, rows, piece):
    total = _add_rows(total, x, at, rows, piece)
  return total


def _pieces(x: Array) -> tuple[int, int]:
  """Rows of the leaf, and of a piece. Leading axes that are not sharded make up the rows."""
  rows, width = 1, x.size
  for size, own in zip(x.shape, x.sharding.shard_shape(x.shape), strict=True):
    if width <= PIECE or own != size:
      break
    rows, width = rows * size, width // size
  most = min(rows, max(1, PIECE // max(width, 1)))
  return rows, next(piece for piece in range(most, 0, -1) if rows % piece == 0)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _add_rows(total: Array, x: Array, first: Array, rows: int, piece: int) -> Array:
  merged = 0  # axes that make up the rows
  while math.prod(x.shape[:merged]) < rows:
    merged += 1
  x = x.reshape(rows, *x.shape[merged:])
  part = lax.dynamic_slice_in_dim(x, first, piece)
  width = x.size // rows
  return total + _mixed_sum(part, first.astype(jnp.uint32) * jnp.uint32(width % 2**32))


def _mixed_sum(x: Array, first: Array) -> Array:
  """Of a piece whose first element has the index `first` in its leaf."""
  words = x.astype(jnp.uint8) if x.dtype == bool else x
  words = lax.bitcast_convert_type(words, f"uint{8 * words.dtype.itemsize}").astype(jnp.uint32)
  mixed, stride = words + first * jnp.uint32(0x9E3779B9), 1
  for axis in reversed(range(x.ndim)):
    index = lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed += index * jnp.uint32(stride * 0x9E3779B9 % 2**32)
    stride *= x.shape[axis]
  return _stirred(mixed).sum(dtype=jnp.uint32)


def _sum_on_host(x: np.ndarray) -> np.uint32:
  words = x.ravel().view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32)
  index = np.arange(words.size, dtype=np.uint32)
  return _stirred(words + index * np.uint32(0x9E3779B9)).sum(dtype=np.uint32)


def _stirred(mixed: Array | np.ndarray) -> Array | np.ndarray:
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # murmur3's finaliser
    mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
  return mixed
