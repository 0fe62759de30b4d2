"""What the loop carries from forward to forward."""

import jax
import jax.numpy as jnp
from flax import struct

from dlm.types import Array, Canvas, KVCache, State

FREE, WAITS = -1, -2  # in place of a set: any id; nothing is written there in this forward


@struct.dataclass
class Held:
  """What rows may write in one forward: found anew by who knows the rule, `dlm.serving.holds`.

  Any one token that is allowed leaves the other slots of its hole something. Two may not: at most
  one slot of a group is written in a forward. Tokens of a held slot are final.
  """

  sets_BxKxU: Array  # uint32: sets of ids, a bit each, see `token_stats`
  set_BxL: Array  # int32: which of them holds at a slot, or FREE or WAITS
  group_BxL: Array  # int32 in [0, K]; 0: no group, whatever else is written goes with it


@struct.dataclass
class Served:
  """What rows have of their own where they are requests that come and go (`dlm.serving`)."""

  # The next three are None where rows have no settings of their own.
  temperature_B: Array | None  # in place of the sampler's; 0: the candidate is the argmax
  threshold_B: Array | None  # in place of the policy's; NaN: the policy's
  top_p_B: Array | None  # in place of the sampler's
  broken_B: Array  # the model said NaN where the row had to decide
  entropy_BxL: Array | None  # nats, of what a held row's token was chosen from; NaN: not known
  held: Held | None = None  # what rows may write in the next forward, of those held to sets


@struct.dataclass
class LoopState:
  canvas: Canvas
  cache: KVCache | None
  policy: State
  step_B: Array  # deciding forwards spent on the active block
  cached_B: Array  # slots before this are cached for good
  renewed_B: Array  # the row's last forward was the whole canvas
  soft_BxAxD: Array | None  # what slots in scope carry of their last prediction
  served: Served | None = None  # None: all rows are as the sampler says
  waited_B: Array | None = None  # turns since the row took part in one, of samplers that choose


def row_axes(cache: KVCache) -> KVCache:
  """Which axis of each leaf holds the rows."""
  k, v = (jax.tree.map(lambda _: 1, x) for x in (cache.k_YxBxSxKxH, cache.v_YxBxSxKxH))
  axes = jax.tree.map(lambda _: 0, cache).replace(k_YxBxSxKxH=k, v_YxBxSxKxH=v)
  if cache.ring is not None:
    axes = axes.replace(ring=axes.ring.replace(k_YxBxSxKxH=1, v_YxBxSxKxH=1))
  return axes if cache.drafts is None else axes.replace(drafts=row_axes(cache.drafts))


def axes_of(state: LoopState) -> LoopState:
  """Which axis of each leaf holds the rows; of a state or of the shapes of one."""
  axes = jax.tree.map(lambda _: 0, state)
  return axes if state.cache is None else axes.replace(cache=row_axes(state.cache))


def where_rows(rows_B: Array, new: State, old: State) -> State:
  """Row-wise choice; every leaf of a policy's state leads with B."""

  def choose(a: Array, b: Array) -> Array:
    return jnp.where(rows_B.reshape(-1, *[1] * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, new, old)
