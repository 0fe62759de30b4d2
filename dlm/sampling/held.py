"""Rows whose tokens are held to sets: what of a decision they may write."""

import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.canvas import at_slot
from dlm.sampling.score import confidence
from dlm.sampling.state import FREE, Held
from dlm.types import Array, Decision, Progress, View


def hold(held: Held, view: View, decision: Decision, at: Progress) -> Decision:
  """What of a decision the sets bear: the surest token of each group, and none that was final.

  A row that would write nothing writes the surest token that it may; and no row ends, nor leaves
  its block, while a held slot is still masked.
  """
  held_BxA = (at_slot(held.set_BxL, view.slot_BxA) != FREE) & view.open_BxA
  may_BxA = held_BxA & view.masked_BxA & (view.stats.top1 > -jnp.inf)
  sure_BxA = confidence(view.stats)
  chosen_BxA = decision.write_BxA & may_BxA & (decision.token_BxA != view.mask_id)
  rank_BxA = select.rank(sure_BxA, chosen_BxA)
  group_BxA = at_slot(held.group_BxL, view.slot_BxA)
  batch, groups = len(group_BxA), held.sets_BxKxU.shape[1] + 1
  none_BxG = jnp.full((batch, groups), rank_BxA.shape[1])
  first_BxG = none_BxG.at[jnp.arange(batch)[:, None], group_BxA].min(
    jnp.where(chosen_BxA, rank_BxA, rank_BxA.shape[1])
  )
  first_BxA = jnp.take_along_axis(first_BxG, group_BxA, axis=1)
  chosen_BxA &= (group_BxA == 0) | (rank_BxA == first_BxA)

  others_BxA = decision.write_BxA & ~held_BxA
  stuck_B = ~(chosen_BxA | (others_BxA & view.masked_BxA)).any(-1)
  chosen_BxA |= select.top(sure_BxA, may_BxA, stuck_B.astype(jnp.int32))

  left_BxL = (held.set_BxL != FREE) & at.masked_BxL
  done_B, here_BxL = chosen_BxA.sum(-1), left_BxL & at.active_BxL

  def unless(asked_B: Array | None, left_BxL: Array) -> Array | None:
    return None if asked_B is None else asked_B & (left_BxL.sum(-1) <= done_B)

  return decision.replace(
    write_BxA=others_BxA | chosen_BxA,
    token_BxA=jnp.where(chosen_BxA, view.stats.token, decision.token_BxA),
    stop_B=unless(decision.stop_B, left_BxL),
    leave_B=unless(decision.leave_B, here_BxL),
  )
