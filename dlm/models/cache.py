"""Keys and values by canvas position: every layer reads its own, then writes the window's."""

import jax.numpy as jnp

from dlm.types import Array, KVCache, Ring

Stored = tuple[Array, Array]  # keys and values


def empty(
  *, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> KVCache:
  shape = (layers, batch, slots, kv_heads, head_dim)
  return KVCache(
    k_YxBxSxKxH=jnp.zeros(shape, dtype),
    v_YxBxSxKxH=jnp.zeros(shape, dtype),
    filled_BxS=jnp.zeros((batch, slots), bool),
  )


def ring(
  *, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> Ring:
  """Empty; `slots`: as many positions as its layers look back."""
  shape = (layers, batch, slots, kv_heads, head_dim)
  nothing = jnp.full((batch, slots), -1, jnp.int32)
  return Ring(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), nothing)


def targets(slot_BxW: Array, write_BxW: Array, slots: int) -> Array:
  """The slot that each of the window's keys goes to; those that go nowhere: one past the last."""
  return jnp.where(write_BxW, slot_BxW, slots)


def ring_targets(slot_BxW: Array, write_BxW: Array, size: int) -> Array:
  """The place in a ring that each of the window's keys goes to; one past the last: it goes nowhere.

  Keys enter in the order of the canvas, so those of a row that are `size` behind its last are lost.
  """
  last_Bx1 = jnp.where(write_BxW, slot_BxW, -1).max(1, keepdims=True)
  return jnp.where(write_BxW & (slot_BxW > last_Bx1 - size), slot_BxW % size, size)


def held(slot_BxS: Array, target_BxW: Array, slot_BxW: Array) -> Array:
  """The positions that a ring holds after that."""
  row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]
  return slot_BxS.at[row_Bx1, target_BxW].set(slot_BxW, mode="drop")


def put(stored: Stored, new: Stored, layer: Array, target_BxW: Array) -> Stored:
  """A layer's new keys and values [B, W, K, H] in their slots; all else stays, bit for bit.

  One scatter a tensor, so that a donated or looped cache is updated in place.
  """
  row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]

  def one(store_YxBxSxKxH: Array, new_BxWxKxH: Array) -> Array:
    own = new_BxWxKxH.astype(store_YxBxSxKxH.dtype)
    return store_YxBxSxKxH.at[layer, row_Bx1, target_BxW].set(own, mode="drop")

  return one(stored[0], new[0]), one(stored[1], new[1])


def filled(filled_BxS: Array, target_BxW: Array) -> Array:
  """Which slots hold keys after that."""
  row_Bx1 = jnp.arange(target_BxW.shape[0])[:, None]
  return filled_BxS.at[row_Bx1, target_BxW].set(True, mode="drop")


def in_window(slot_BxW: Array, slots: int) -> Array:
  """Bool [B, S]: slots that the window itself holds, so the cache's copy is stale."""
  batch = slot_BxW.shape[0]
  nowhere_BxS = jnp.zeros((batch, slots), bool)
  return nowhere_BxS.at[jnp.arange(batch)[:, None], slot_BxW].set(True, mode="drop")
