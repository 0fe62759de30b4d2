"""Insertion and deletion: what follows a slot moves, on a canvas whose shape is fixed.

A policy that `shifts` says where by `Decision.insert_BxA` and `delete_BxA`. Its tokens are written
first; then slots move, each with its token and all that is known of it. By the policy's scope:

  "block"   within a hole, a run of open slots of the active block, whose length stays as it is:
            what is pushed past its end is lost, and what becomes free there is masked
  "canvas"  the row grows and shrinks, and text behind a hole moves as a whole. Insertions for which
            the canvas has no room are not carried out, later ones first: no given text is lost

A policy that keeps something for each slot moves it alike: `moved(x_BxA, sources(...), new)`.
"""

import jax.numpy as jnp

from dlm import edits
from dlm.edits import moved
from dlm.sampling.sampler import Sampler
from dlm.types import Array, Canvas, Decision, View

PADDING = -2


def sources(view: View, insert_BxA: Array, delete_BxA: Array, scope: str) -> Array:
  """The place in the view [B, A] that each slot takes its content from; NEW: a mask; PADDING.

  Only open slots are deleted, and only before them is inserted. Both at once: the slot is new.

  Args:
    scope: the policy's.
  """
  insert_BxA, delete_BxA = insert_BxA & view.open_BxA, delete_BxA & view.open_BxA
  if scope == "block":
    return edits.sources(insert_BxA, delete_BxA, *edits.holes(view.open_BxA))
  place_BxA = jnp.broadcast_to(jnp.arange(view.slot_BxA.shape[1]), view.slot_BxA.shape)
  room_Bx1 = (~view.inside_BxA | delete_BxA).sum(-1, keepdims=True)
  insert_BxA &= jnp.cumsum(insert_BxA, axis=1) <= room_Bx1
  length_Bx1 = (view.inside_BxA.astype(jnp.int32) + insert_BxA - delete_BxA).sum(-1, keepdims=True)
  all_BxA = jnp.zeros_like(place_BxA), jnp.full_like(place_BxA, place_BxA.shape[1])
  source_BxA = edits.sources(insert_BxA, delete_BxA, *all_BxA)
  return jnp.where(place_BxA < length_Bx1, source_BxA, PADDING)


def carry_out(
  sampler: Sampler, canvas: Canvas, view: View, decision: Decision, rows_B: Array
) -> Canvas:
  """In `rows`, slots move as the decision says."""
  if not sampler.policy.shifts:
    return canvas
  source_BxA = sources(view, decision.insert_BxA, decision.delete_BxA, sampler.scope)
  place_1xA = jnp.arange(source_BxA.shape[1])[None, :]
  source_BxA = jnp.where(rows_B[:, None], source_BxA, place_1xA)
  row_Bx1 = jnp.arange(len(rows_B))[:, None]

  def put(x_BxL: Array, new: float | bool) -> Array:
    x_BxA = jnp.take_along_axis(x_BxL, view.slot_BxA, axis=1, mode="clip")
    return x_BxL.at[row_Bx1, view.slot_BxA].set(moved(x_BxA, source_BxA, new), mode="drop")

  grown_B = canvas.length_B
  if sampler.scope == "canvas":
    grown_B = jnp.where(rows_B, (source_BxA != PADDING).sum(-1), canvas.length_B)
  slot_1xL = jnp.arange(canvas.open_BxL.shape[1])[None, :]
  return canvas.replace(
    tokens_BxL=put(canvas.tokens_BxL, sampler.mask_id),
    open_BxL=put(canvas.open_BxL, True) & (slot_1xL < grown_B[:, None]),
    when_BxL=put(canvas.when_BxL, -1),
    logp_BxL=put(canvas.logp_BxL, jnp.nan),
    length_B=grown_B,
  )
