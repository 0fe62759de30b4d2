"""The noise level that time-conditioned models are told while sampling."""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array


@dataclasses.dataclass(frozen=True)
class MaskRatio:
  """The share of a row's open slots that is still masked, told to every slot of the row.

  It is the level at which the forward process masks that many tokens (mask probability = level).
  """

  def __call__(self, masked_BxL: Array, open_BxL: Array, slot_BxW: Array) -> Array:
    ratio_B = masked_BxL.sum(-1) / jnp.maximum(open_BxL.sum(-1), 1)
    return jnp.broadcast_to(ratio_B[:, None], slot_BxW.shape)


@dataclasses.dataclass(frozen=True)
class BlockMaskRatio:
  """The masked share of each slot's own block; 0 on clean blocks, as block diffusion trains."""

  block: int

  def __call__(self, masked_BxL: Array, open_BxL: Array, slot_BxW: Array) -> Array:
    batch, length = masked_BxL.shape
    pad = -length % self.block
    blocks = jnp.pad(masked_BxL, ((0, 0), (0, pad))).reshape(batch, -1, self.block)
    ratio_BxG = blocks.mean(-1)
    return jnp.take_along_axis(ratio_BxG, slot_BxW // self.block, axis=1)
