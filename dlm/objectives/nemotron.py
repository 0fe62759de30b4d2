"""Nemotron-Labs-Diffusion: block diffusion and next tokens in one forward. NeMo Automodel."""

import dataclasses

from dlm import masks
from dlm.diffusion.schedules import LLADA_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, block_start, document_start
from dlm.types import Array, Batch, MaskRule, Noisy


@dataclasses.dataclass(frozen=True)
class Nemotron(BlockTraining):
  """Nemotron-Labs-Diffusion (NeMo Automodel, `hybrid`): fill masks, and predict next tokens too.

  ce / p of masked tokens over their number, plus the mean next-token cross-entropy of the clean
  text: noisy blocks see themselves and clean ones before, clean text is read causally. The numbers
  are those of the whole batch. Both streams are asked, so `targets` holds the text twice, as
  [noisy; clean] does; a document's first token is no next one. The softmax keeps the mask id.

  Args:
    schedule: noise schedule, one level a document; the authors' is p = 0.999 t + 0.001.
    diffusion_weight: of the masked tokens' part (Automodel's alpha).
    next_weight: of the next tokens' part.
    causal_clean: False: clean text is read in blocks, as it was before the model learned to be
      autoregressive too (theirs: block_diff); it then predicts no next tokens.
  """

  schedule: MaskSchedule = LLADA_LINEAR
  diffusion_weight: float = 0.3
  next_weight: float = 1.0
  causal_clean: bool = True

  def __post_init__(self):
    super().__post_init__()
    for name in ("diffusion_weight", "next_weight"):
      if getattr(self, name) < 0:
        raise ValueError(f"Nemotron: {name}={getattr(self, name)} must not be negative")
    if self.next_weight and not self.causal_clean:
      raise ValueError(
        f"Nemotron: next_weight={self.next_weight} must be 0 where causal_clean=False: clean text "
        "sees its next tokens"
      )

  @property
  def attention(self) -> MaskRule:
    return (masks.CausalContext if self.causal_clean else masks.BlockCausal)(self.block)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_BxL = at(draws["u_time"], document_start(batch))
    level_BxL, noisable_BxL = self.schedule.masked(t_BxL), streams.noisable(batch)
    masked_BxL = (draws["u_mask"] < level_BxL) & noisable_BxL
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=self.diffusion_weight * self.schedule.weight(t_BxL),
      level_BxL=level_BxL,
      count_B=masked_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    start_BxL = block_start(batch, self.block)
    mask = masks.noisy_clean_from(start_BxL, self.block, causal_clean=self.causal_clean)
    noisy = streams.noisy_and_clean(noisy, mask)
    return streams.asking_next(noisy, batch, self.next_weight * masked_BxL.sum())

  def not_a_likelihood(self) -> str | None:
    return "it adds the losses of two predictions of each token"
