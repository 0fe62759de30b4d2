"""A checksum for every leaf of a tree: the same however the leaf is sharded."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dlm.types import Array

PIECE = 2**20  # elements mixed at a time; XLA for CPUs keeps two words of each


def checksums(tree: Any) -> dict[str, int]:
  """Checksum of every leaf by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(jax.tree.map(_checksum, tree)))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): int(x) for path, x in leaves}


def _checksum(x: Array) -> Array:
  """Sum modulo 2^32 of every element's bits, mixed with its index.

  The mix is a bijection for a given index, so one wrong element is always seen, and several go
  unseen once in 2^32. Integer sums do not depend on their order, nor thus on pieces and shards.
  """
  x = jnp.atleast_1d(x)
  rows = _rows_at_a_time(x)
  total = jnp.uint32(0)
  for at in range(0, x.shape[0], rows):
    total = _add_rows(total, x, at, rows)
  return total


def _rows_at_a_time(x: Array) -> int:
  """Rows of a piece: a divisor of all rows; all of them where they are sharded."""
  rows = x.shape[0]
  if x.size <= PIECE or x.sharding.shard_shape(x.shape)[0] != rows:
    return max(rows, 1)
  most = max(1, PIECE * rows // x.size)
  return next(each for each in range(most, 0, -1) if rows % each == 0)


@functools.partial(jax.jit, static_argnums=3)
def _add_rows(total: Array, x: Array, first: Array, rows: int) -> Array:
  stride = x.size // x.shape[0]
  piece = lax.dynamic_slice_in_dim(x, first, rows)
  return total + _mixed_sum(piece, first.astype(jnp.uint32) * jnp.uint32(stride % 2**32))


def _mixed_sum(x: Array, first: Array) -> Array:
  """Of a piece whose first element has the index `first` in its leaf."""
  words = x.astype(jnp.uint8) if x.dtype == bool else x
  words = lax.bitcast_convert_type(words, f"uint{8 * words.dtype.itemsize}").astype(jnp.uint32)
  mixed, stride = words + first * jnp.uint32(0x9E3779B9), 1
  for axis in reversed(range(x.ndim)):
    index = lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed += index * jnp.uint32(stride * 0x9E3779B9 % 2**32)
    stride *= x.shape[axis]
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # murmur3's finaliser
    mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
  return mixed.sum(dtype=jnp.uint32)
