"""The positions of a row on several devices: each has its own queries, and gathers all keys.

Which positions those are is free (`shards.dealt`): ranges are of slots, and keys tell where they
sit. Keys and values are gathered layer by layer and dropped again, forward and backward; the
gradient of that is a reduce-scatter. A ring would hold a device's share of them at a time and send
as many bytes, but needs kernels that merge softmaxes between its steps, and in every step all
devices wait for the one whose ranges see most. One layer's keys are little beside the rest: of
65,536 tokens, 8 heads of 128 in bfloat16, 256 MiB with their values.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from kernels_pallas import shards
from kernels_pallas.block_attention.spec import Keys, Mask, Part

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
  """What each device's queries see; slots and ranges are those of the whole row."""

  own: Any  # sights of an implementation; their leaves lead with an axis of devices

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
    """See `kernels_pallas.block_attention.block_attention`."""

    def attend(own: Any, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
      whole = jax.tree.map(_gathered, parts)
      return jax.tree.map(lambda x: x[0], own).attend(q_BxWxNxH, whole)

    return shards.run(attend, ("r", "bst", "bst"), "bst", self.own, q_BxWxNxH, list(parts))


def prepare(own: Callable[[Mask, Sequence[Keys]], Any], mask: Mask, keys: Sequence[Keys]) -> Sight:
  """Of the window's own keys. `own`: prepares some queries and all keys.

  ValueError: cached keys, or positions that do not divide.
  """
  if any(part.live_BxS is not None for part in keys):
    raise ValueError("block_attention: mesh.sequence splits no cached keys: it is for training")

  def of_device(mask: Mask, keys: Sequence[Keys]) -> Any:
    return jax.tree.map(lambda x: x[None], own(mask, keys))

  split = Mask("bs", "bs")
  if mask.q_segment_BxW is not None:
    split = split.replace(q_segment_BxW="bs", k_segment_BxS="b")
  if mask.dense_BxWxS is not None:
    split = split.replace(dense_BxWxS="bs")
  return Sight(shards.run(of_device, (split, "b"), "r", mask, list(keys)))


def _gathered(x_BxSxKxH: Array) -> Array:
  return jax.lax.all_gather(x_BxSxKxH, shards.SEQUENCE, axis=1, tiled=True)
