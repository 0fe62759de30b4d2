"""Attention masks as ranges of key slots: R ranges per query, and document segments.

Ranges are what a kernel can use without an [L, L] array; `visible` makes them dense for XLA and for
tests. Index conventions are those of `dlm.types.Mask`.
"""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array, Mask


def _one_range(lo_BxW: Array, hi_BxW: Array) -> Mask:
  return Mask(lo_BxWxR=lo_BxW[..., None], hi_BxWxR=hi_BxW[..., None])


@dataclasses.dataclass(frozen=True)
class Full:
  """Every query sees every slot (MDLM, LLaDA, Dream)."""

  def __call__(self, slot_BxW: Array, slots: int) -> Mask:
    return _one_range(jnp.zeros_like(slot_BxW), jnp.full_like(slot_BxW, slots))


@dataclasses.dataclass(frozen=True)
class Causal:
  """A query sees itself and what stands before it (autoregressive models)."""

  def __call__(self, slot_BxW: Array, slots: int) -> Mask:
    return _one_range(jnp.zeros_like(slot_BxW), jnp.minimum(slot_BxW + 1, slots))


@dataclasses.dataclass(frozen=True)
class BlockCausal:
  """A query sees its own block and all earlier ones; blocks are cut from slot 0 (BD3-LM, SDAR)."""

  block: int

  def __post_init__(self):
    if self.block < 1:
      raise ValueError(f"BlockCausal: block={self.block} must be at least 1")

  def __call__(self, slot_BxW: Array, slots: int) -> Mask:
    end_BxW = (slot_BxW // self.block + 1) * self.block
    return _one_range(jnp.zeros_like(slot_BxW), jnp.minimum(end_BxW, slots))


def noisy_clean(batch: int, length: int, block: int) -> Mask:
  """The training mask of block diffusion over the 2L inputs [noisy; clean] (arXiv 2503.09573, 3.1).

  Noisy block b sees itself and the clean blocks before b - strictly before: `<=` would leak the
  labels. Clean block b sees clean blocks up to and including b.
  """
  start_L = jnp.arange(length) // block * block
  end_L = jnp.minimum(start_L + block, length)
  clean_L = jnp.full((length,), length)
  noisy_lo_LxR = jnp.stack([start_L, clean_L], -1)
  noisy_hi_LxR = jnp.stack([end_L, clean_L + start_L], -1)
  clean_lo_LxR = jnp.stack([clean_L, clean_L], -1)
  clean_hi_LxR = jnp.stack([clean_L + end_L, clean_L], -1)
  lo_WxR = jnp.concatenate([noisy_lo_LxR, clean_lo_LxR])
  hi_WxR = jnp.concatenate([noisy_hi_LxR, clean_hi_LxR])
  shape = (batch, *lo_WxR.shape)
  return Mask(lo_BxWxR=jnp.broadcast_to(lo_WxR, shape), hi_BxWxR=jnp.broadcast_to(hi_WxR, shape))


def within(mask: Mask, length_B: Array) -> Mask:
  """Hides every slot from `length_B` on: rows of unequal length share one canvas."""
  return mask.replace(hi_BxWxR=jnp.minimum(mask.hi_BxWxR, length_B[:, None, None]))


def in_segments(mask: Mask, segment_BxW: Array) -> Mask:
  """Packed documents do not see each other; padding (segment 0) sees only padding."""
  return mask.replace(q_segment_BxW=segment_BxW, k_segment_BxS=segment_BxW)


def visible(mask: Mask, key_slot_BxS: Array) -> Array:
  """Dense bool [B, W, S]: may query w see key s, which sits at `key_slot`?"""
  slot_BxWxSxR = key_slot_BxS[:, None, :, None]
  lo, hi = mask.lo_BxWxR[:, :, None, :], mask.hi_BxWxR[:, :, None, :]
  seen_BxWxS = ((lo <= slot_BxWxSxR) & (slot_BxWxSxR < hi)).any(-1)

  def at_slot(x_BxS: Array) -> Array:
    return jnp.take_along_axis(x_BxS, key_slot_BxS, axis=1)

  if mask.q_segment_BxW is not None:
    seen_BxWxS &= mask.q_segment_BxW[:, :, None] == at_slot(mask.k_segment_BxS)[:, None, :]
  if mask.dense_BxWxS is not None:
    index_BxWxS = jnp.broadcast_to(key_slot_BxS[:, None, :], seen_BxWxS.shape)
    seen_BxWxS &= jnp.take_along_axis(mask.dense_BxWxS, index_BxWxS, axis=2)
  return seen_BxWxS
