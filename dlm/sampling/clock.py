"""The noise level that models are told while sampling: time-conditioned ones, and experts."""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array


@dataclasses.dataclass(frozen=True)
class MaskRatio:
  """The share of a row's open slots that is still masked, told to every slot of the row.

  It is the level at which the forward process masks that many tokens (mask probability = level).

  Args:
    prompt: the share of all of the row's slots, its prompt among them (EC-DLM, arXiv 2604.01622,
      whose evaluator counts so).
  """

  prompt: bool = False

  def __call__(
    self, masked_BxL: Array, open_BxL: Array, inside_BxL: Array, slot_BxW: Array
  ) -> Array:
    counted_BxL = inside_BxL if self.prompt else open_BxL
    ratio_B = masked_BxL.sum(-1) / jnp.maximum(counted_BxL.sum(-1), 1)
    return jnp.broadcast_to(ratio_B[:, None], slot_BxW.shape)


@dataclasses.dataclass(frozen=True)
class BlockMaskRatio:
  """The masked share of each slot's own block; 0 on clean blocks, as block diffusion trains."""

  block: int

  def __call__(
    self, masked_BxL: Array, open_BxL: Array, inside_BxL: Array, slot_BxW: Array
  ) -> Array:
    batch, length = masked_BxL.shape
    pad = -length % self.block
    blocks = jnp.pad(masked_BxL, ((0, 0), (0, pad))).reshape(batch, -1, self.block)
    ratio_BxG = blocks.mean(-1)
    return jnp.take_along_axis(ratio_BxG, slot_BxW // self.block, axis=1)
