"""DreamOn: one mask for two tokens, and masks for none. arXiv 2602.01326; its trainer."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.block import at, document_end, document_start
from dlm.objectives.objective import Objective
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class DreamOn(Objective):
  """DreamOn (2602.01326): fill a hole that may have too few masks for its tokens, or too many.

  In every row a random run of noisable tokens is the hole, with at least one of its document before
  and behind it. End tokens are put behind it, 0 to `ends` - 1 of them but no more than the row ends
  in padding, and are always masked. Its tokens are masked at level t, uniform for each row. Then
  adjacent masks merge with a probability of `merge` times the share that is not masked, or in half
  of the rows of `merge`: the first of them is asked for `expand_id`, the second leaves the row.

  1 - t weighs the cross-entropy, and all end tokens of the batch weigh as one other token: (sum of
  the others + mean of the ends) / (number of the others + 1). The input before a token predicts it,
  its softmax with the mask id. A mask that left is no such input; theirs asks it all the same.

  Args:
    mask_id: id of [MASK].
    vocab: number of ids.
    end_id: the end token.
    expand_id: DreamOn-v0-7B's is 151667.
    ends: 1: no end tokens are put.
    merge: a probability.
    static: share of the rows that merge with `merge`, whatever is masked.
  """

  mask_id: int
  vocab: int = dataclasses.field(kw_only=True)
  end_id: int = dataclasses.field(kw_only=True)
  expand_id: int = dataclasses.field(kw_only=True)
  ends: int = 64
  merge: float = 0.5
  static: float = 0.5
  shift = 1

  def __post_init__(self):
    streams.check_mask_id("DreamOn", self.mask_id)
    if self.end_id < 0 or self.expand_id < 0:
      raise ValueError(
        f"DreamOn: end_id={self.end_id} and expand_id={self.expand_id} must not be negative"
      )
    if self.expand_id >= self.vocab or self.expand_id in (self.mask_id, self.end_id):
      raise ValueError(
        f"DreamOn: expand_id={self.expand_id} must lie below vocab={self.vocab}, and be neither "
        f"mask_id={self.mask_id} nor end_id={self.end_id}"
      )
    if self.ends < 1:
      raise ValueError(f"DreamOn: ends={self.ends} must be at least 1 (none)")
    for name in ("merge", "static"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"DreamOn: {name}={getattr(self, name)} must lie in [0, 1]")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_row" [B, 5] (hole, its end, end tokens, level, schedule), "u_mask", "u_merge"."""
    key_row, key_mask, key_merge = jax.random.split(key, 3)
    shape = batch.tokens_BxL.shape
    return {
      "u_row": jax.random.uniform(key_row, (shape[0], 5)),
      "u_mask": jax.random.uniform(key_mask, shape),
      "u_merge": jax.random.uniform(key_merge, shape),
    }

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    u_first_B, u_end_B, u_ends_B, t_B, u_static_B = draws["u_row"].T
    first_B, end_B = self._hole(batch, u_first_B, u_end_B)
    batch, hole_BxL, put_BxL = self._with_ends(batch, first_B, end_B, u_ends_B)
    drawn_BxL = hole_BxL & (draws["u_mask"] < t_B[:, None])
    share_B = drawn_BxL.sum(-1) / jnp.maximum(hole_BxL.sum(-1), 1)
    masked_BxL = drawn_BxL | put_BxL
    merge_B = self.merge * jnp.where(u_static_B < self.static, 1, 1 - share_B)
    # Before the first end token; the one before it may take it in.
    merges_BxL = masked_BxL & jnp.roll(masked_BxL, -1, axis=1) & ~put_BxL
    merges_BxL &= (draws["u_merge"] < merge_B[:, None]).at[:, -1].set(False)
    gone_BxL = jnp.pad(merges_BxL[:, :-1], ((0, 0), (1, 0)))
    targets_BxL = jnp.where(merges_BxL, self.expand_id, batch.tokens_BxL)
    batch, masked_BxL, put_BxL = _without(
      batch.replace(tokens_BxL=targets_BxL), masked_BxL, put_BxL & ~merges_BxL, gone_BxL
    )
    others_BxL, ends = masked_BxL & ~put_BxL, put_BxL.sum()
    per_token_BxL = jnp.where(put_BxL, 1 / jnp.maximum(ends, 1), 1)
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=(1 - t_B)[:, None] * per_token_BxL,
      level_BxL=jnp.broadcast_to(t_B[:, None], masked_BxL.shape),
      count_B=others_BxL.sum(-1) + (ends > 0) / len(t_B),
      mask_id=self.mask_id,
    )
    return noisy.replace(ask_BxL=streams.slots(batch) - ~streams.first_of_document(batch))

  def _hole(self, batch: Batch, u_first_B: Array, u_end_B: Array) -> tuple[Array, Array]:
    """First slot and end [B] of each row's hole; equal where the row has no place for one."""
    noisable_BxL, slot_BxL = streams.noisable(batch), streams.slots(batch)
    last_BxL = document_end(batch) - 1
    may_BxL = noisable_BxL & (slot_BxL > document_start(batch)) & (slot_BxL < last_BxL)
    count_B = may_BxL.sum(-1)
    which_B = jnp.floor(u_first_B * count_B).astype(jnp.int32)
    is_first_BxL = may_BxL & (jnp.cumsum(may_BxL, axis=1) - 1 == which_B[:, None])
    first_B = jnp.argmax(is_first_BxL, axis=1)
    # The run of such slots that it begins; its end is any slot behind the first.
    stops_BxL = (slot_BxL > first_B[:, None]) & ~may_BxL
    room_B = jnp.argmax(stops_BxL, axis=1) - first_B
    end_B = first_B + 1 + jnp.floor(u_end_B * room_B).astype(jnp.int32)
    return first_B, jnp.where(count_B > 0, end_B, first_B)

  def _with_ends(
    self, batch: Batch, first_B: Array, end_B: Array, u_ends_B: Array
  ) -> tuple[Batch, Array, Array]:
    """The batch with end tokens behind holes; bool [B, L]: the holes with them, and they alone."""
    slot_BxL = streams.slots(batch)
    padding_B = (jnp.cumsum((batch.segment_BxL > 0)[:, ::-1], axis=1) == 0).sum(-1)
    most_B = jnp.minimum(self.ends, padding_B)
    ends_B = jnp.where(end_B > first_B, jnp.floor(u_ends_B * most_B), 0).astype(jnp.int32)
    put_BxL = (slot_BxL >= end_B[:, None]) & (slot_BxL < (end_B + ends_B)[:, None])
    hole_BxL = (slot_BxL >= first_B[:, None]) & (slot_BxL < (end_B + ends_B)[:, None])
    behind_BxL = slot_BxL >= (end_B + ends_B)[:, None]
    from_BxL = jnp.where(behind_BxL, slot_BxL - ends_B[:, None], slot_BxL)
    from_BxL = jnp.where(put_BxL, jnp.maximum(end_B - 1, 0)[:, None], from_BxL)
    batch = _taken(batch, from_BxL)
    return (
      batch.replace(tokens_BxL=jnp.where(put_BxL, self.end_id, batch.tokens_BxL)),
      hole_BxL,
      put_BxL,
    )

  def not_a_likelihood(self) -> str | None:
    return "what it asks for is not the text"


def _taken(batch: Batch, from_BxL: Array) -> Batch:
  """The rows' tokens in another order; positions count on from the start of each document."""
  batch = batch.replace(
    tokens_BxL=at(batch.tokens_BxL, from_BxL),
    noisable_BxL=at(batch.noisable_BxL, from_BxL),
    segment_BxL=at(batch.segment_BxL, from_BxL),
  )
  return batch.replace(position_BxL=streams.slots(batch) - document_start(batch))


def _without(
  batch: Batch, masked_BxL: Array, put_BxL: Array, gone_BxL: Array
) -> tuple[Batch, Array, Array]:
  """What is left moves together; the row ends in padding for what is gone."""
  order_BxL = jnp.argsort(gone_BxL, axis=1, stable=True)
  padding_BxL = at(gone_BxL, order_BxL)
  batch = batch.replace(segment_BxL=jnp.where(gone_BxL, 0, batch.segment_BxL))
  batch = _taken(batch, order_BxL)
  return batch, at(masked_BxL, order_BxL) & ~padding_BxL, at(put_BxL, order_BxL) & ~padding_BxL
