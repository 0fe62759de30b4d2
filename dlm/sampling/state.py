"""What the loop carries from forward to forward."""

import jax
import jax.numpy as jnp
from flax import struct

from dlm.types import Array, Canvas, KVCache, State


@struct.dataclass
class LoopState:
  canvas: Canvas
  cache: KVCache | None
  policy: State
  step_B: Array  # deciding forwards spent on the active block
  cached_B: Array  # slots before this are cached for good
  renewed_B: Array  # the row's last forward was the whole canvas
  soft_BxLxD: Array | None  # what masked slots carry of their last prediction


def where_rows(rows_B: Array, new: State, old: State) -> State:
  """Row-wise choice; every leaf of a policy's state leads with B."""

  def choose(a: Array, b: Array) -> Array:
    return jnp.where(rows_B.reshape(-1, *[1] * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, new, old)
