"""Keys and values by canvas position: read layer by layer, written once after all layers."""

import jax.numpy as jnp

from dlm.types import Array, KVCache


def empty(
  *, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> KVCache:
  shape = (layers, batch, slots, kv_heads, head_dim)
  return KVCache(
    k_YxBxSxKxH=jnp.zeros(shape, dtype),
    v_YxBxSxKxH=jnp.zeros(shape, dtype),
    filled_BxS=jnp.zeros((batch, slots), bool),
  )


def write(
  cache: KVCache, k_YxBxWxKxH: Array, v_YxBxWxKxH: Array, slot_BxW: Array, write_BxW: Array
) -> KVCache:
  """Puts the window's keys into their slots where `write`; all else stays, bit for bit.

  One scatter a tensor, so that a donated or looped cache is updated in place.
  """
  batch, slots = cache.filled_BxS.shape
  row_Bx1 = jnp.arange(batch)[:, None]
  slot_BxW = jnp.where(write_BxW, slot_BxW, slots)  # past the end: dropped

  def put(store: Array, new: Array) -> Array:
    return store.at[:, row_Bx1, slot_BxW].set(new.astype(store.dtype), mode="drop")

  return KVCache(
    k_YxBxSxKxH=put(cache.k_YxBxSxKxH, k_YxBxWxKxH),
    v_YxBxSxKxH=put(cache.v_YxBxSxKxH, v_YxBxWxKxH),
    filled_BxS=cache.filled_BxS.at[row_Bx1, slot_BxW].set(True, mode="drop"),
  )


def in_window(slot_BxW: Array, slots: int) -> Array:
  """Bool [B, S]: slots that the window itself holds, so the cache's copy is stale."""
  batch = slot_BxW.shape[0]
  nowhere_BxS = jnp.zeros((batch, slots), bool)
  return nowhere_BxS.at[jnp.arange(batch)[:, None], slot_BxW].set(True, mode="drop")
