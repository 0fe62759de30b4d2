"""SDAR: autoregressive models become block diffusion models. arXiv 2510.06303; its code."""

import dataclasses

from dlm.diffusion.schedules import LLADA_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, document_start, fill_last_blocks
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class Sdar(BlockTraining):
  """SDAR (2510.06303): block training of an autoregressive model, one noise level a document.

  ce / p over all noisable tokens, clean blocks before.
  The prompt is never masked and shares a block with the answer where it ends within one. The
  authors draw documents without a masked token again, which is no longer the bound; here they
  cost nothing.

  Args:
    schedule: noise schedule; the authors' is p = 0.999 t + 0.001.
    fill: padding after a document is text up to the end of its last block, which is then as the
      sampler will write it.
  """

  schedule: MaskSchedule = LLADA_LINEAR
  fill: bool = True
  shiftable = True
  annealable = True
  exact_count = True

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    if self.fill:
      batch, filled_BxL = fill_last_blocks(batch, self.block)
      batch = batch.replace(noisable_BxL=batch.noisable_BxL | filled_BxL)
    t_BxL = at(draws["u_time"], document_start(batch))
    level_BxL, noisable_BxL = self.schedule.masked(t_BxL), streams.noisable(batch)
    noisy = streams.one_stream(
      batch,
      masked_BxL=(draws["u_mask"] < level_BxL) & noisable_BxL,
      weight_BxL=self.schedule.weight(t_BxL),
      level_BxL=level_BxL,
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    return self.beside_clean(noisy, batch)

  def not_a_likelihood(self) -> str | None:
    if self.fill:
      return "fill=True counts the padding that completes last blocks; False leaves it out"
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"
