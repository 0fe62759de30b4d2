"""LLaDA2.0: supervised fine-tuning. arXiv 2512.15745, 4; the code is inclusionAI/dFactory."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion.schedules import LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import (
  BlockTraining,
  at,
  both_views,
  document_start,
  interleaved,
  per_masked,
)
from dlm.objectives.cross_entropy import logits, predict
from dlm.objectives.diffullama import check_shift
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Llada2Sft(BlockTraining):
  """LLaDA2.0 fine-tuning (2512.15745): block training at middle noise levels, all weighed alike.

  Mean cross-entropy of masked tokens, one noise level per example, clean blocks before. Levels
  are drawn from a window, and nothing is weighed by them. The prompt stays clean; whether padding
  is answer is the data's matter (the authors': yes).

  Args:
    window: times are drawn from [lo, hi].
    shift: 1: the noisy input before a token predicts it.
    complement: every row comes twice with complementary masks (the report; not in dFactory).
    confidence: weight of the entropy of right predictions, its mean over the rows at hand (CAP).
      Forms [B, L, V] logits; 0: off.
  """

  schedule: MaskSchedule = LINEAR
  window: tuple[float, float] = (0.3, 0.8)
  shift: int = 0
  complement: bool = False
  confidence: float = 0.0
  exact_count = True
  annealable = True

  def __post_init__(self):
    super().__post_init__()
    check_shift(self.shift)
    lo, hi = self.window
    if not 0 < lo <= hi <= 1:
      raise ValueError(f"Llada2Sft: window={self.window} must hold 0 < lo <= hi <= 1")
    if self.confidence < 0:
      raise ValueError(f"Llada2Sft: confidence={self.confidence} must not be negative")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    lo, hi = self.window
    t_BxL = lo + (hi - lo) * at(draws["u_time"], document_start(batch))
    level_BxL = self.schedule.masked(t_BxL)
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
    noisy = self.beside_clean(noisy, batch)
    return per_masked(streams.shifted_in_stream(noisy, batch)) if self.shift else noisy

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """The loss of all masked tokens has the mean entropy."""
    if not self.confidence:
      return super().losses(denoise, params, noisy)
    asked_BxL = noisy.weight_BxL > 0
    head, aux = predict(denoise, params, noisy)
    logits_BxLxV = logits(head)
    logp_BxLxV = jax.nn.log_softmax(logits_BxLxV)
    target_BxL = noisy.targets_BxL
    logp_BxL = jnp.take_along_axis(logp_BxLxV, target_BxL[..., None], axis=-1)[..., 0]
    ce_BxL = jnp.where(asked_BxL, -logp_BxL, 0)
    right_BxL = asked_BxL & (logits_BxLxV.argmax(-1) == target_BxL)
    entropy_BxL = jnp.where(right_BxL, -(jnp.exp(logp_BxLxV) * logp_BxLxV).sum(-1), 0)
    mean = entropy_BxL.sum() / jnp.maximum(right_BxL.sum(), 1)
    return ce_BxL + self.confidence * mean * asked_BxL, ce_BxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it weighs the noise levels of its window alike"
