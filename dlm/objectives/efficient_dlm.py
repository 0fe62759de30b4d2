"""Efficient-DLM: later tokens of a block are masked more often. arXiv 2512.14067, 3; Automodel.

The paper has no code of its own; its masking is `corrupt_blockwise` of NVIDIA NeMo Automodel.
"""

import dataclasses
import math

import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import absorbing
from dlm.diffusion.schedules import LLADA_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, block_start, document_end, document_start
from dlm.types import Array, Batch, Noisy

CONTEXTS = ("clean", "noisy")


@dataclasses.dataclass(frozen=True)
class EfficientDlm(BlockTraining):
  """Efficient-DLM (2512.14067): block training that masks a block's later tokens more often.

  ce / m over all noisable tokens: of the n tokens of a block at level m, round(m n) are masked.
  Which ones: k draws without replacement in proportion to exp(beta (1 - m) i) for the i-th token,
  beta = ln 2 / (half_life * block). Prompt tokens take part in the draw, yet stay clean. No shift.
  The paper does not say what its sum is divided by; with 1/m it is all noisable tokens.

  Args:
    block: None: the document, which the model then sees whole; at least one draw.
    schedule: gives the level m; the authors' is 0.999 t + 0.001.
    half_life: the share of a block over which a token's odds double near m = 0; the paper's best is
      0.1. None: every place alike.
    context: "clean": [noisy; clean]. "noisy": one stream, block-causal (rows d and e of Table 1).
  """

  block: int | None = dataclasses.field()
  schedule: MaskSchedule = LLADA_LINEAR
  half_life: float | None = 0.1
  context: str = "clean"
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    if self.half_life is not None and not self.half_life > 0:
      raise ValueError(
        f"EfficientDlm: half_life={self.half_life} must be positive (None: no preference)"
      )
    if self.context not in CONTEXTS:
      raise ValueError(
        f"EfficientDlm: context={self.context!r} is not one of {', '.join(CONTEXTS)}"
      )

  def chosen(
    self, u_BxL: Array, start_BxL: Array, size_BxL: Array, level_BxL: Array, count_BxL: Array
  ) -> Array:
    """Bool [B, L]: `count` slots of each block; `size` says how long a whole block is."""
    offset_BxL = jnp.arange(u_BxL.shape[1])[None] - start_BxL
    beta = 0.0 if self.half_life is None else math.log(2) / (self.half_life * size_BxL)
    score_BxL = absorbing.later_first(u_BxL, offset_BxL, beta * (1 - level_BxL))
    return absorbing.highest_in_blocks(score_BxL, start_BxL, count_BxL)

  def masked(self, draws: dict[str, Array], batch: Batch) -> tuple[Array, Array]:
    """What is masked, bool, and the level of each slot, [B, L] each."""
    end_BxL = document_end(batch)
    if self.block is None:
      start_BxL = document_start(batch)
      size_BxL, least = end_BxL - start_BxL, 1
    else:
      start_BxL = block_start(batch, self.block)
      size_BxL, least = jnp.full_like(start_BxL, self.block), 0
    level_BxL = self.schedule.masked(at(draws["u_time"], start_BxL))
    tokens_BxL = jnp.minimum(size_BxL, end_BxL - start_BxL)
    count_BxL = jnp.round(level_BxL * tokens_BxL).astype(jnp.int32)  # half to even, as theirs
    masked_BxL = self.chosen(
      draws["u_mask"], start_BxL, size_BxL, level_BxL, jnp.maximum(count_BxL, least)
    )
    return masked_BxL & streams.noisable(batch), level_BxL

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    masked_BxL, level_BxL = self.masked(draws, batch)
    count_B = streams.noisable(batch).sum(-1)
    noisy = streams.one_stream(batch, masked_BxL, 1 / level_BxL, level_BxL, count_B, self.mask_id)
    if self.block is None:
      return noisy
    if self.context == "clean":
      return self.beside_clean(noisy, batch)
    mask = masks.prompt_then_blocks(document_start(batch), self.block)
    return noisy.replace(mask=masks.in_segments(mask, batch.segment_BxL))

  def not_a_likelihood(self) -> str | None:
    return "it weighs by 1/m, but does not mask with probability m"
