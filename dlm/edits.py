"""Insertion and deletion in rows of fixed length, within holes: the slots that text may move in."""

import jax
import jax.numpy as jnp

from dlm.types import Array

NEW = -1  # where nothing came from


def holes(open_BxL: Array, begins_BxL: Array | bool = False) -> tuple[Array, Array]:
  """First slot of each slot's hole, and the one behind its last [B, L]. Closed slots stand alone.

  Args:
    begins_BxL: where another hole begins, though the slot before is open too.
  """
  length = open_BxL.shape[1]
  slot_BxL = jnp.broadcast_to(jnp.arange(length), open_BxL.shape)
  edge_BxL = ~open_BxL | ~jnp.pad(open_BxL, ((0, 0), (1, 0)))[:, :-1] | begins_BxL
  first_BxL = jax.lax.cummax(jnp.where(edge_BxL, slot_BxL, 0), axis=1)
  from_BxL = jax.lax.cummin(jnp.where(edge_BxL, slot_BxL, length), axis=1, reverse=True)
  return first_BxL, jnp.pad(from_BxL[:, 1:], ((0, 0), (0, 1)), constant_values=length)


def sources(insert_BxL: Array, delete_BxL: Array, first_BxL: Array, end_BxL: Array) -> Array:
  """The slot that each takes its content from once holes are edited, int [B, L]; NEW: a mask.

  What is pushed past the end of its hole is lost. Both edits at once: the slot is new.

  Args:
    insert_BxL: bool, a new slot comes in before this one.
    delete_BxL: bool, this slot goes.
    first_BxL, end_BxL: where each slot's hole begins and ends.
  """
  slot_BxL = jnp.broadcast_to(jnp.arange(insert_BxL.shape[1]), insert_BxL.shape)
  moves_BxL = jnp.cumsum(insert_BxL.astype(jnp.int32) - delete_BxL, axis=1)
  before_BxL = jnp.take_along_axis(jnp.pad(moves_BxL, ((0, 0), (1, 0))), first_BxL, axis=1)
  into_BxL = slot_BxL + moves_BxL - before_BxL
  into_BxL = jnp.where(~delete_BxL & (into_BxL < end_BxL), into_BxL, slot_BxL.shape[1])
  row_Bx1 = jnp.arange(len(slot_BxL))[:, None]
  return jnp.full_like(slot_BxL, NEW).at[row_Bx1, into_BxL].set(slot_BxL, mode="drop")


def moved(x_BxL: Array, source_BxL: Array, new: Array | float | bool) -> Array:
  """x as it stands after the edits; `new` where nothing came from."""
  taken_BxL = jnp.take_along_axis(x_BxL, jnp.maximum(source_BxL, 0), axis=1)
  return jnp.where(source_BxL < 0, new, taken_BxL)
