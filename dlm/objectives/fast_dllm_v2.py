"""Fast-dLLM v2: block diffusion with complementary masks and shifted logits. arXiv 2509.26328."""

import dataclasses

import jax.numpy as jnp

from dlm.diffusion.schedules import LLADA_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import (
  BlockTraining,
  at,
  block_start,
  both_views,
  fill_last_blocks,
  interleaved,
  per_masked,
)
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class FastDllmV2(BlockTraining):
  """Fast-dLLM v2 (2509.26328): block training that sees each row twice, with opposite masks.

  Mean cross-entropy of masked tokens, one noise level per block, clean blocks before.
  Logits at i predict token i + 1, within the noisy stream: the first token of a block is asked of
  the noisy block before, though sampling asks the clean one. Padding that completes a document's
  last block is masked in both streams and never scored.

  Args:
    schedule: noise schedule; the authors' is p = 0.999 t + 0.001.
    complement: every row comes twice, and what one view hides the other shows: 2B noisy rows.
  """

  schedule: MaskSchedule = LLADA_LINEAR
  complement: bool = True
  shift = 1
  annealable = True
  exact_count = True

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    batch, filled_BxL = fill_last_blocks(batch, self.block)
    batch = batch.replace(tokens_BxL=jnp.where(filled_BxL, self.mask_id, batch.tokens_BxL))
    level_BxL = self.schedule.masked(at(draws["u_time"], block_start(batch, self.block)))
    masked_BxL = (draws["u_mask"] < level_BxL) & streams.noisable(batch)
    if self.complement:
      level_BxL = interleaved(level_BxL, 1 - level_BxL)
      batch, masked_BxL = both_views(batch, masked_BxL)
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=jnp.ones_like(level_BxL),
      level_BxL=level_BxL,
      count_B=masked_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    return per_masked(streams.shifted_in_stream(self.beside_clean(noisy, batch), batch))

  def not_a_likelihood(self) -> str | None:
    return "it weighs all noise levels alike"
