"""Attention masks as ranges of key slots: R ranges per query, and document segments.

Ranges are what a kernel can use without an [L, L] array: see `kernels_pallas.block_attention`.
"""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array, Mask


def _one_range(lo_BxW: Array, hi_BxW: Array) -> Mask:
  return Mask(lo_BxWxR=lo_BxW[..., None], hi_BxWxR=hi_BxW[..., None])


@dataclasses.dataclass(frozen=True)
class Full:
  """Every query sees every slot (MDLM, LLaDA, Dream)."""

  def __call__(
    self, slot_BxW: Array, slots: int, answer_B: Array | None = None, start_B: Array | None = None
  ) -> Mask:
    return _one_range(jnp.zeros_like(slot_BxW), jnp.full_like(slot_BxW, slots))


@dataclasses.dataclass(frozen=True)
class Causal:
  """A query sees itself and what stands before it (autoregressive models)."""

  def __call__(
    self, slot_BxW: Array, slots: int, answer_B: Array | None = None, start_B: Array | None = None
  ) -> Mask:
    return _one_range(jnp.zeros_like(slot_BxW), jnp.minimum(slot_BxW + 1, slots))


@dataclasses.dataclass(frozen=True)
class BlockCausal:
  """A query sees its own block and all earlier ones; blocks are cut from slot 0 (BD3-LM, SDAR).

  Args:
    context: slots that a query sees at most, counted back from the end of its block; 0: all. So
      BD3-LM (arXiv 2503.09573) writes texts longer than those it was trained on.
  """

  block: int
  context: int = 0

  def __post_init__(self):
    if self.block < 1:
      raise ValueError(f"BlockCausal: block={self.block} must be at least 1")
    if self.context < 0 or self.context % self.block:
      raise ValueError(
        f"BlockCausal: context={self.context} must be a multiple of block={self.block} (0: all)"
      )

  def __call__(
    self, slot_BxW: Array, slots: int, answer_B: Array | None = None, start_B: Array | None = None
  ) -> Mask:
    end_BxW = (slot_BxW // self.block + 1) * self.block
    first_BxW = jnp.zeros_like(slot_BxW)
    if self.context:
      first_BxW = jnp.maximum(end_BxW - self.context, 0)
    return _one_range(first_BxW, jnp.minimum(end_BxW, slots))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Text is read causally, and a canvas of `block` slots sees all of itself (DiffusionGemma).

  The first range of a query is its own: itself, or its canvas. The second is its past, of which a
  sliding layer takes the end.
  """

  block: int

  def __post_init__(self):
    if self.block < 1:
      raise ValueError(f"Canvas: block={self.block} must be at least 1")

  def __call__(
    self,
    slot_BxW: Array,
    slots: int,
    answer_B: Array | None = None,
    start_B: Array | None = None,
  ) -> Mask:
    """`start_B`: where the canvas begins that is denoised; None: all is text."""
    first_BxW, end_BxW = slot_BxW, slot_BxW + 1
    if start_B is not None:
      offset_BxW = slot_BxW - start_B[:, None]
      canvas_BxW = slot_BxW - offset_BxW % self.block
      first_BxW = jnp.where(offset_BxW < 0, slot_BxW, canvas_BxW)
      end_BxW = jnp.where(offset_BxW < 0, end_BxW, canvas_BxW + self.block)
    return Mask(
      lo_BxWxR=jnp.stack([first_BxW, jnp.zeros_like(slot_BxW)], axis=-1),
      hi_BxWxR=jnp.stack([jnp.minimum(end_BxW, slots), first_BxW], axis=-1),
    )


def noisy_clean(batch: int, length: int, block: int) -> Mask:
  """`noisy_clean_from` where rows are cut into blocks from their first slot (arXiv 2503.09573)."""
  start_L = jnp.arange(length) // block * block
  return noisy_clean_from(jnp.broadcast_to(start_L, (batch, length)), block)


def noisy_clean_from(
  start_BxL: Array, block: int, *, causal_noise: bool = False, causal_clean: bool = False
) -> Mask:
  """The training mask of block diffusion over the 2L inputs [noisy; clean] (arXiv 2503.09573, 3.1).

  A noisy input sees its own block and the clean blocks before it - strictly before: `<=` would leak
  the labels. A clean input sees clean blocks up to and including its own. The first range of every
  noisy input begins where its block does.

  Args:
    start_BxL: first slot of each slot's block; before 0 where a first block is cut short.
    causal_noise: of its own block a noisy input sees itself and what stands before it.
    causal_clean: clean inputs see themselves and what stands before them.
  """
  length = start_BxL.shape[1]
  after_BxL = jnp.broadcast_to(jnp.arange(1, length + 1), start_BxL.shape)
  end_BxL = jnp.minimum(start_BxL + block, length)
  clean_BxL = jnp.full_like(start_BxL, length)

  def ranges(noisy_BxL: Array, clean_BxL: Array) -> Array:
    return jnp.stack([noisy_BxL, clean_BxL], axis=-1)

  noisy_lo = ranges(jnp.maximum(start_BxL, 0), clean_BxL)
  noisy_hi = ranges(after_BxL if causal_noise else end_BxL, length + start_BxL)
  clean_lo = ranges(clean_BxL, clean_BxL)
  clean_hi = ranges(length + (after_BxL if causal_clean else end_BxL), clean_BxL)
  return Mask(
    lo_BxWxR=jnp.concatenate([noisy_lo, clean_lo], axis=1),
    hi_BxWxR=jnp.concatenate([noisy_hi, clean_hi], axis=1),
  )


def canvases(start_BxL: Array, block: int) -> Mask:
  """The training mask of `Canvas` over the 2L inputs [noisy; clean].

  A noisy input sees its canvas and the clean text before it, a clean one the text up to itself.

  Args:
    start_BxL: first slot of each slot's canvas.
  """
  length = start_BxL.shape[1]
  mask = noisy_clean_from(start_BxL, block, causal_clean=True)
  clean_BxW = jnp.broadcast_to(jnp.arange(2 * length) >= length, mask.lo_BxWxR.shape[:2])
  own_BxW = mask.hi_BxWxR[..., 0] - 1
  lo = jnp.stack([own_BxW, jnp.full_like(own_BxW, length)], axis=-1)
  hi = jnp.stack([own_BxW + 1, own_BxW], axis=-1)
  return Mask(
    lo_BxWxR=jnp.where(clean_BxW[..., None], lo, mask.lo_BxWxR),
    hi_BxWxR=jnp.where(clean_BxW[..., None], hi, mask.hi_BxWxR),
  )


@dataclasses.dataclass(frozen=True)
class PromptBlocks:
  """The prompt is a block of any length, and blocks of the answer are cut from its end (D2F)."""

  block: int

  def __post_init__(self):
    if self.block < 1:
      raise ValueError(f"PromptBlocks: block={self.block} must be at least 1")

  def __call__(
    self, slot_BxW: Array, slots: int, answer_B: Array, start_B: Array | None = None
  ) -> Mask:
    end_BxW = _end_of_block(slot_BxW, answer_B[:, None], self.block)
    return _one_range(jnp.zeros_like(slot_BxW), jnp.minimum(end_BxW, slots))


@dataclasses.dataclass(frozen=True)
class AnswerBlocks(PromptBlocks):
  """The prompt is in blocks too, counted back from its end: its first may be short (OPDLM)."""

  def __call__(
    self, slot_BxW: Array, slots: int, answer_B: Array, start_B: Array | None = None
  ) -> Mask:
    offset_BxW = slot_BxW - answer_B[:, None]
    end_BxW = slot_BxW + self.block - offset_BxW % self.block
    return _one_range(jnp.zeros_like(slot_BxW), jnp.minimum(end_BxW, slots))


@dataclasses.dataclass(frozen=True)
class CausalContext(PromptBlocks):
  """Clean text is read causally, the block that is being written as a whole (Nemotron-Labs).

  A rule for the block being written, whose queries see all before it and itself. `clean` is the one
  for text: what is cached has seen no later token, and predicts the next one.
  """

  clean = Causal()


def _end_of_block(slot_BxW: Array, answer_BxW: Array, block: int) -> Array:
  offset_BxW = slot_BxW - answer_BxW
  return jnp.where(offset_BxW < 0, answer_BxW, answer_BxW + (offset_BxW // block + 1) * block)


def prompt_then_blocks(answer_BxL: Array, block: int) -> Mask:
  """The prompt is a block of any length; blocks of the answer see it, themselves, those before.

  One stream, so blocks that are still noisy are seen as well (D2F, arXiv 2508.09192).

  Args:
    answer_BxL: where the answer of each slot's document begins.
  """
  length = answer_BxL.shape[1]
  end_BxL = jnp.minimum(_end_of_block(jnp.arange(length)[None], answer_BxL, block), length)
  return _one_range(jnp.zeros_like(end_BxL), end_BxL)


def own_past(mask: Mask) -> Mask:
  """Of a mask by `noisy_clean_from`: of its own stream an input sees no later input."""
  after_W = jnp.arange(1, mask.hi_BxWxR.shape[1] + 1)
  hi_BxW = jnp.minimum(mask.hi_BxWxR[..., 0], after_W[None])
  return mask.replace(hi_BxWxR=mask.hi_BxWxR.at[..., 0].set(hi_BxW))


def nearby(mask: Mask, position_BxW: Array, window: int) -> Mask:
  """Of its first range, which begins at position 0, a query sees `window` - 1 tokens back at most.

  Args:
    position_BxW: of the queries, in their documents.
  """
  hidden_BxW = jnp.maximum(position_BxW - (window - 1), 0)
  return mask.replace(lo_BxWxR=mask.lo_BxWxR.at[..., 0].add(hidden_BxW))


def within(mask: Mask, length_B: Array) -> Mask:
  """Hides every slot from `length_B` on: rows of unequal length share one canvas."""
  return mask.replace(hi_BxWxR=jnp.minimum(mask.hi_BxWxR, length_B[:, None, None]))


def in_segments(mask: Mask, segment_BxW: Array) -> Mask:
  """Packed documents do not see each other; padding (segment 0) sees only padding."""
  return mask.replace(q_segment_BxW=segment_BxW, k_segment_BxS=segment_BxW)


def taken(mask: Mask, order_W: Array) -> Mask:
  """The mask of the queries in that order; keys are seen where they were."""
  rows = ("lo_BxWxR", "hi_BxWxR", "q_segment_BxW", "dense_BxWxS")
  given = {name: x for name in rows if (x := getattr(mask, name)) is not None}
  return mask.replace(**{name: x[:, order_W] for name, x in given.items()})


def live(mask: Mask, key_BxW: Array) -> Array:
  """Bool [B, W]: real tokens, not padding; they see themselves, at `key`, and are of a segment.

  What `dense` hides for a while is as real as before.
  """
  key_BxWx1 = key_BxW[:, :, None]
  live_BxW = ((mask.lo_BxWxR <= key_BxWx1) & (key_BxWx1 < mask.hi_BxWxR)).any(-1)
  return live_BxW if mask.q_segment_BxW is None else live_BxW & (mask.q_segment_BxW != 0)
