"""What the model reads: one noisy stream, or [noisy; clean]. Both build a `Noisy` from a mask draw.

Rotary positions are the batch's own (they restart in every packed document); documents do not see
each other, and padding (segment 0) is seen by padding only and never asked.
"""

import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import absorbing
from dlm.types import Array, Batch, Mask, Noisy


def noisable(batch: Batch) -> Array:
  """Bool [B, L]: text that may be masked and scored; padding never is."""
  return batch.noisable_BxL & (batch.segment_BxL > 0)


def slots(batch: Batch) -> Array:
  """0, 1, ... in each row, [B, L]."""
  length = batch.tokens_BxL.shape[1]
  return jnp.broadcast_to(jnp.arange(length), batch.tokens_BxL.shape)


def one_stream(
  batch: Batch, masked_BxL: Array, weight_BxL: Array, level_BxL: Array, count_B: Array, mask_id: int
) -> Noisy:
  """Every input sees every input of its document (MDLM, LLaDA). W = L.

  Args:
    masked_BxL: bool, what is replaced by `mask_id`.
    weight_BxL: weight of the cross-entropy where masked; elsewhere it is set to 0.
    level_BxL: noise level told to the model.
    count_B: what each row adds to the loss's denominator.
  """
  full = masks.Full()(batch.position_BxL, batch.position_BxL.shape[1])
  return Noisy(
    inputs_BxW=absorbing.mask_out(batch.tokens_BxL, masked_BxL, mask_id),
    targets_BxL=batch.tokens_BxL,
    weight_BxL=jnp.where(masked_BxL, weight_BxL, 0).astype(jnp.float32),
    count_B=count_B.astype(jnp.float32),
    slot_BxW=batch.position_BxL,
    time_BxW=level_BxL.astype(jnp.float32),
    mask=masks.in_segments(full, batch.segment_BxL),
  )


def noisy_rows(
  batch: Batch, u_mask_BxL: Array, level_B: Array, weight_B: Array, mask_id: int
) -> Noisy:
  """One stream, one noise level a row: masks where u < level, counts all noisable tokens."""
  noisable_BxL = noisable(batch)
  shape = noisable_BxL.shape
  return one_stream(
    batch,
    masked_BxL=(u_mask_BxL < level_B[:, None]) & noisable_BxL,
    weight_BxL=jnp.broadcast_to(weight_B[:, None], shape),
    level_BxL=jnp.broadcast_to(level_B[:, None], shape),
    count_B=noisable_BxL.sum(-1),
    mask_id=mask_id,
  )


def asking_next(noisy: Noisy, batch: Batch, weight: Array) -> Noisy:
  """[noisy; clean] that also asks the clean text for its next tokens.

  Args:
    weight: of all next tokens of the batch together. A loss is divided by what the noisy stream
      counts, so a part's weight is its share of that.
  """
  next_BxL = noisable(batch) & ~first_of_document(batch)
  per_next = weight / jnp.maximum(next_BxL.sum(), 1)
  length, slot_BxL = batch.tokens_BxL.shape[1], slots(batch)
  return noisy.replace(
    targets_BxL=jnp.concatenate([batch.tokens_BxL, batch.tokens_BxL], axis=1),
    weight_BxL=jnp.concatenate([noisy.weight_BxL, per_next * next_BxL], axis=1),
    ask_BxL=jnp.concatenate([slot_BxL, length + jnp.maximum(slot_BxL - 1, 0)], axis=1),
  )


def noisy_and_clean(noisy: Noisy, mask: Mask) -> Noisy:
  """Appends the clean text: noisy blocks see themselves and clean blocks strictly before. W = 2L.

  Args:
    noisy: one stream.
    mask: one of `masks.noisy_clean...`; documents are kept apart here.
  """

  def twice(x_BxL: Array) -> Array:
    return jnp.concatenate([x_BxL, x_BxL], axis=1)

  return noisy.replace(
    inputs_BxW=jnp.concatenate([noisy.inputs_BxW, noisy.targets_BxL], axis=1),
    slot_BxW=twice(noisy.slot_BxW),
    time_BxW=jnp.concatenate([noisy.time_BxW, jnp.zeros_like(noisy.time_BxW)], axis=1),
    mask=masks.in_segments(mask, twice(noisy.mask.q_segment_BxW)),
  )


def first_of_document(batch: Batch) -> Array:
  """Bool [B, L]: tokens with nothing of their document before them in the row."""
  first_BxL = batch.segment_BxL != jnp.roll(batch.segment_BxL, 1, axis=1)
  return first_BxL.at[:, 0].set(True)


def shifted(noisy: Noisy) -> Noisy:
  """Asks the input before each token. The row's first token, which has none, asks its own.

  In [noisy; clean] the first token of a block asks the clean token before it, which sees what it
  sees when the block is sampled: clean text alone.
  """
  length = noisy.targets_BxL.shape[1]
  ask_BxL = _before(noisy)
  if noisy.inputs_BxW.shape[1] != length:
    block_start_BxL = noisy.mask.lo_BxWxR[:, :length, 0]  # see `masks.noisy_clean_from`
    ask_BxL += jnp.where(ask_BxL < block_start_BxL, length, 0)
  return noisy.replace(ask_BxL=ask_BxL)


def shifted_in_stream(noisy: Noisy, batch: Batch) -> Noisy:
  """Asks the noisy input before each token, the last of the block before for the first of a block.

  So the training code of Fast-dLLM v2 and dFactory has it. A document's first token is not scored.
  """
  scored_BxL = ~first_of_document(batch)
  return noisy.replace(ask_BxL=_before(noisy), weight_BxL=noisy.weight_BxL * scored_BxL)


def _before(noisy: Noisy) -> Array:
  shape = noisy.targets_BxL.shape
  return jnp.broadcast_to(jnp.maximum(jnp.arange(shape[1]) - 1, 0), shape)


def blocks_of(length: int, block: int) -> int:
  """Number of blocks in a row; ValueError unless blocks fill it."""
  if length % block:
    raise ValueError(f"block={block} must divide the length of a row, {length}")
  return length // block


def check_mask_id(owner: str, mask_id: int) -> None:
  """Raises ValueError unless `mask_id` is an id."""
  if mask_id < 0:
    raise ValueError(f"{owner}: mask_id={mask_id} must not be negative")
