"""D2F: discrete diffusion forcing, later blocks noisier. arXiv 2508.09192; its code."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, answer_start, at, document_end
from dlm.objectives.cross_entropy import predict
from dlm.objectives.divergence import Divergence
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, MaskRule, Noisy, Params

TARGETS = ("text", "teacher")


@dataclasses.dataclass(frozen=True)
class D2f(BlockTraining):
  """D2F (2508.09192): each block of the answer is noisier than the one before, all seen noisy.

  The loss of masked tokens is the distance from the target over p, a mean over their number.

  One stream: the prompt is the first block, and the blocks of the answer, counted from its first
  token, see the prompt, themselves and the blocks before, noisy as these are. The first level is
  drawn from the window; the n - 1 steps after it are uniform on [0, (hi - level) / (n - 1)].

  The teacher reads the same noisy text with full attention, later blocks too: in the authors' code
  the weights without their adapter (`self_align`). Their distance from it is the cross-entropy
  against its distribution; ours is KL(teacher || model), less by the teacher's entropy, which has
  no gradient. Our reading: of packed documents it sees the token's own.

  Args:
    window: [lo, hi] of the masking probability.
    target: "text": the cross-entropy of the text, their `self_align: false`. "teacher": the
      divergence, which is then the bare "cross-entropy" of the metrics too.
  """

  window: tuple[float, float] = (0.2, 0.7)
  target: str = "text"
  teacher_shift = 0
  shiftable = True
  annealable = True

  def __post_init__(self):
    super().__post_init__()
    lo, hi = self.window
    if not 0 < lo <= hi <= 1:
      raise ValueError(f"D2f: window={self.window} must hold 0 < lo <= hi <= 1")
    if self.target not in TARGETS:
      raise ValueError(f"D2f: target={self.target!r} is not one of {', '.join(TARGETS)}")

  @property
  def taught(self) -> bool:
    return self.target == "teacher"

  @property
  def tellable(self) -> bool:
    return self.taught

  @property
  def teacher_attention(self) -> MaskRule:
    return masks.Full()

  @property
  def divergence(self) -> Divergence:
    return Divergence()

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

  def losses(self, denoise, params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """Of one that is taught `denoise` and `params` are pairs: the model's, the teacher's."""
    if not self.taught:
      return super().losses(denoise, params, noisy)
    (student, teacher), (own, frozen) = denoise, params
    head, aux = predict(student, own, noisy)
    nats_BxL = self.divergence(
      head, self.teacher_head(teacher, frozen, noisy), noisy.weight_BxL > 0
    )
    return noisy.weight_BxL * nats_BxL, nats_BxL, aux

  def teacher_head(
    self, teacher: Denoiser, params: Params, noisy: Noisy, student: LogitHead | None = None
  ) -> LogitHead:
    del student
    full = masks.Full()(noisy.slot_BxW, noisy.slot_BxW.shape[1])
    seen = masks.in_segments(full, noisy.mask.q_segment_BxW)
    return jax.lax.stop_gradient(predict(teacher, params, noisy.replace(mask=seen))[0])

  def not_a_likelihood(self) -> str | None:
    if self.taught:
      return "it is the distance from a teacher"
    return "blocks are given noisy ones before them, and it divides by the number of masked tokens"
