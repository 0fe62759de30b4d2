"""What all implementations take: a mask, keys, and parts.

Shape letters: B row, W window of queries, S keys of one part, R ranges, N query heads, K key heads,
H head dim, Y layers.
"""

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

Array = jax.Array

RESIDUALS = "block_attention"  # what kernels keep to go backward, for policies of `jax.checkpoint`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
  """Which keys each query may see: `R` half-open ranges of key slots, and equal segments.

  Without a cache key j is input j. With a cache key slots are canvas positions, and a window key
  sits at its own slot. A key is visible iff some range holds it, the segments (if given) agree and
  `dense` (if given) allows it; slots that are not filled are never visible. `k_segment` and `dense`
  are indexed by slot, not by key.
  """

  lo_BxWxR: Array
  hi_BxWxR: Array
  q_segment_BxW: Array | None = None
  k_segment_BxS: Array | None = None
  dense_BxWxS: Array | None = None

  def replace(self, **fields: Any) -> Self:
    return dataclasses.replace(self, **fields)


class Keys(NamedTuple):
  """Where the keys of one part sit. Those that are not live are never seen, whatever they hold."""

  slot_BxS: Array
  live_BxS: Array | None = None  # None: all are, as the window's own keys


class Part(NamedTuple):
  """Keys and values [B, S, K, H]; with `layer` those of all layers, [Y, B, S, K, H]."""

  k: Array
  v: Array
  layer: Array | None = None


class Heads(NamedTuple):
  """Query heads and the key heads that they share evenly."""

  queries: int
  keys: int
  dim: int | None = None  # None: one that the implementation serves, and so with the dtype
  dtype: jnp.dtype | None = None


def segment_of(mask: Mask, keys: Keys) -> Array:
  """Int [B, S]: the segment of each key."""
  return jnp.take_along_axis(mask.k_segment_BxS, keys.slot_BxS, axis=1)


def visible(mask: Mask, keys: Keys) -> Array:
  """Dense bool [B, W, S]: which keys of one part each query sees."""
  slot_BxWxSxR = keys.slot_BxS[:, None, :, None]
  lo, hi = mask.lo_BxWxR[:, :, None, :], mask.hi_BxWxR[:, :, None, :]
  seen_BxWxS = ((lo <= slot_BxWxSxR) & (slot_BxWxSxR < hi)).any(-1)
  if mask.q_segment_BxW is not None:
    seen_BxWxS &= mask.q_segment_BxW[:, :, None] == segment_of(mask, keys)[:, None, :]
  if mask.dense_BxWxS is not None:
    index_BxWxS = jnp.broadcast_to(keys.slot_BxS[:, None, :], seen_BxWxS.shape)
    seen_BxWxS &= jnp.take_along_axis(mask.dense_BxWxS, index_BxWxS, axis=2)
  if keys.live_BxS is not None:
    seen_BxWxS &= keys.live_BxS[:, None, :]
  return seen_BxWxS


def own_layer(part: Part) -> Part:
  """The part with its own layer's keys and values alone."""
  if part.layer is None:
    return part
  k, v = (jax.lax.dynamic_index_in_dim(x, part.layer, keepdims=False) for x in part[:2])
  return Part(k, v)


def layer_of(part: Part) -> Array:
  """Int32 [1]: which layer of a cache is meant; 0 if it is a layer alone."""
  return jnp.asarray(0 if part.layer is None else part.layer, jnp.int32).reshape(1)


def without_dead(part: Part, live_BxS: Array | None) -> Part:
  """Zeros for keys and values that are not live: they may hold anything, and 0 * NaN is NaN."""
  if live_BxS is None:
    return part
  live = live_BxS[:, :, None, None]
  return Part(jnp.where(live, part.k, 0), jnp.where(live, part.v, 0))
