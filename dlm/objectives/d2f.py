"""D2F: discrete diffusion forcing, later blocks noisier. arXiv 2508.09192; its code."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, answer_start, at, document_end
from dlm.types import Array, Batch, MaskRule, Noisy


@dataclasses.dataclass(frozen=True)
class D2f(BlockTraining):
  """D2F (2508.09192): each block of the answer is noisier than the one before, all seen noisy.

  The loss is ce / p of masked tokens over their number.

  One stream: the prompt is the first block, and the blocks of the answer, counted from its first
  token, see the prompt, themselves and the blocks before, noisy as these are. The first level is
  drawn from the window; the n - 1 steps after it are uniform on [0, (hi - level) / (n - 1)].

  The authors tell the model a full-attention teacher's distribution (the weights without their
  adapter); here the target is the text, as in their `self_align: false`.

  Args:
    window: [lo, hi] of the masking probability.
  """

  window: tuple[float, float] = (0.2, 0.7)
  shiftable = True
  annealable = True

  def __post_init__(self):
    super().__post_init__()
    lo, hi = self.window
    if not 0 < lo <= hi <= 1:
      raise ValueError(f"D2f: window={self.window} must hold 0 < lo <= hi <= 1")

  @property
  def attention(self) -> MaskRule:
    return masks.PromptBlocks(self.block)

  def levels(self, u_BxL: Array, batch: Batch) -> Array:
    """Masking probability of each slot, [B, L]: the same within a block; 0 on prompts."""
    lo, hi = self.window
    length = batch.tokens_BxL.shape[1]
    answer_BxL = answer_start(batch)
    first_BxL = jnp.minimum(answer_BxL, length - 1)  # a document may have no answer
    offset_BxL = jnp.arange(length)[None] - answer_BxL
    blocks_BxL = -((answer_BxL - document_end(batch)) // self.block)
    level_BxL = lo + (hi - lo) * at(u_BxL, first_BxL)
    most_BxL = (hi - level_BxL) / jnp.maximum(blocks_BxL - 1, 1)
    rises_BxL = (offset_BxL > 0) & (offset_BxL % self.block == 0)
    total_BxL = jnp.cumsum(jnp.where(rises_BxL, u_BxL * most_BxL, 0), axis=1)
    level_BxL += total_BxL - at(total_BxL, first_BxL)
    return jnp.where(offset_BxL < 0, 0, jnp.clip(level_BxL, lo, hi))

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    level_BxL = self.levels(draws["u_time"], batch)
    masked_BxL = (draws["u_mask"] < level_BxL) & streams.noisable(batch)
    weight_BxL = 1 / jnp.maximum(level_BxL, self.window[0])
    noisy = streams.one_stream(
      batch, masked_BxL, weight_BxL, level_BxL, masked_BxL.sum(-1), self.mask_id
    )
    mask = masks.prompt_then_blocks(answer_start(batch), self.block)
    return noisy.replace(mask=masks.in_segments(mask, batch.segment_BxL))

  def not_a_likelihood(self) -> str | None:
    return "blocks are given noisy ones before them, and it divides by the number of masked tokens"
