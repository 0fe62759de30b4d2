"""Parts of block training that papers put together in their own way.

Where blocks are cut, what shares a noise level, how the last block of a document is filled up, the
complementary view, and the frame they are used in. Blocks count from the first token of their
document, so that packed documents are cut as they are when sampled.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.objective import Objective
from dlm.types import Array, Batch, Noisy


def document_start(batch: Batch) -> Array:
  """First slot of the document that each slot belongs to, [B, L]; a run of padding is one too."""
  first_BxL = streams.first_of_document(batch)
  return jax.lax.cummax(jnp.where(first_BxL, streams.slots(batch), 0), axis=1)


def document_end(batch: Batch) -> Array:
  """The slot after the last one of each slot's document, [B, L]."""
  length = batch.tokens_BxL.shape[1]
  first_BxL = streams.first_of_document(batch)
  from_BxL = jax.lax.cummin(
    jnp.where(first_BxL, streams.slots(batch), length), axis=1, reverse=True
  )
  return jnp.pad(from_BxL[:, 1:], ((0, 0), (0, 1)), constant_values=length)


def answer_start(batch: Batch) -> Array:
  """First noisable slot of each slot's document, [B, L]; its end or later where there is none."""
  length = batch.tokens_BxL.shape[1]
  next_BxL = jnp.where(streams.noisable(batch), streams.slots(batch), length)
  next_BxL = jax.lax.cummin(next_BxL, axis=1, reverse=True)
  return at(next_BxL, document_start(batch))


def block_start(batch: Batch, block: int) -> Array:
  """First slot of each slot's block, [B, L]; the last block of a document may be shorter."""
  start_BxL = document_start(batch)
  return start_BxL + (streams.slots(batch) - start_BxL) // block * block


def answer_block_start(batch: Batch, block: int) -> Array:
  """As `block_start`, of blocks counted both ways from the answer's first token.

  A document's first block may begin before the document.
  """
  slot_BxL = streams.slots(batch)
  return slot_BxL - (slot_BxL - answer_start(batch)) % block


def of_block(values_BxL: Array, batch: Batch, start_BxL: Array, block: int, fill: Any) -> Array:
  """[B, L, block]: the values of all slots of each slot's block; `fill` outside the document."""
  slot_BxLxb = start_BxL[:, :, None] + jnp.arange(block)[None, None]
  inside_BxLxb = slot_BxLxb >= document_start(batch)[:, :, None]
  inside_BxLxb &= slot_BxLxb < document_end(batch)[:, :, None]
  flat = jnp.clip(slot_BxLxb, 0, values_BxL.shape[1] - 1).reshape(values_BxL.shape[0], -1)
  return jnp.where(inside_BxLxb, at(values_BxL, flat).reshape(slot_BxLxb.shape), fill)


def at(values_BxL: Array, slot_BxL: Array) -> Array:
  """What stands at the given slots of the row: one draw shared by a block, document or row."""
  return jnp.take_along_axis(values_BxL, slot_BxL, axis=1)


def fill_last_blocks(batch: Batch, block: int) -> tuple[Batch, Array]:
  """Padding after a document becomes part of it up to a multiple of `block` tokens.

  Returns:
    The batch, what was filled being neither noisable nor another token yet, and bool [B, L]: what
    was filled.
  """
  slot_BxL = streams.slots(batch)
  text_BxL = batch.segment_BxL > 0
  last_BxL = jax.lax.cummax(jnp.where(text_BxL, slot_BxL, -1), axis=1)  # last text up to here
  owner_BxL = jnp.maximum(last_BxL, 0)
  start_BxL = at(document_start(batch), owner_BxL)
  end_BxL = start_BxL + ((last_BxL - start_BxL) // block + 1) * block
  filled_BxL = ~text_BxL & (last_BxL >= 0) & (slot_BxL < end_BxL)
  segment_BxL = jnp.where(filled_BxL, at(batch.segment_BxL, owner_BxL), batch.segment_BxL)
  position_BxL = at(batch.position_BxL, owner_BxL) + slot_BxL - last_BxL
  return batch.replace(
    segment_BxL=segment_BxL,
    position_BxL=jnp.where(filled_BxL, position_BxL, batch.position_BxL),
    noisable_BxL=batch.noisable_BxL & ~filled_BxL,
  ), filled_BxL


def interleaved(first_BxL: Array, second_BxL: Array) -> Array:
  """Rows of the two in turn, [2B, L]: both views of a row stay on the device that holds it."""
  rows, *rest = first_BxL.shape
  return jnp.stack([first_BxL, second_BxL], axis=1).reshape(2 * rows, *rest)


def both_views(batch: Batch, masked_BxL: Array) -> tuple[Batch, Array]:
  """The batch with every row twice, and complementary masks: together they hide each token once."""
  other_BxL = streams.noisable(batch) & ~masked_BxL
  return jax.tree.map(lambda x: interleaved(x, x), batch), interleaved(masked_BxL, other_BxL)


@dataclasses.dataclass(frozen=True)
class BlockTraining(Objective):
  """The frame: a level for every slot, a mask from it, and the weighted cross-entropy.

  A paper says in `corrupt_with` what shares a level, what is masked, and what the model reads. The
  softmax keeps the mask id, as in all of these papers' codes.

  Args:
    mask_id: id of [MASK].
    block: tokens in a block.
  """

  mask_id: int
  block: int = dataclasses.field()

  def __post_init__(self):
    owner = type(self).__name__
    streams.check_mask_id(owner, self.mask_id)
    if self.block is not None and self.block < 1:  # None: where a paper has a meaning for it
      raise ValueError(f"{owner}: block={self.block} must be at least 1")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_time" and "u_mask" [B, L]; a level takes the "u_time" of its first slot."""
    key_time, key_mask = jax.random.split(key)
    shape = batch.tokens_BxL.shape
    return {
      "u_time": jax.random.uniform(key_time, shape),
      "u_mask": jax.random.uniform(key_mask, shape),
    }

  def beside_clean(self, noisy: Noisy, batch: Batch) -> Noisy:
    """[noisy; clean]; one stream where a block is as long as the row: nothing stands before it."""
    if self.block >= batch.tokens_BxL.shape[1]:
      return noisy
    start_BxL = block_start(batch, self.block)
    return streams.noisy_and_clean(noisy, masks.noisy_clean_from(start_BxL, self.block))


def per_masked(noisy: Noisy) -> Noisy:
  """Counts what is asked: the loss becomes a mean over masked tokens."""
  return noisy.replace(count_B=(noisy.weight_BxL > 0).sum(-1).astype(jnp.float32))
