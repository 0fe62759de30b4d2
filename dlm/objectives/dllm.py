"""dllm's trainers: masked and block diffusion with weights and norms to choose. ZHZisZZ/dllm."""

import dataclasses

import jax.numpy as jnp

from dlm.diffusion.schedules import LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, document_start
from dlm.types import Array, Batch, Noisy

WEIGHTS = ("schedule", "none")
NORMS = ("token", "sequence", "row")


@dataclasses.dataclass(frozen=True)
class Dllm(BlockTraining):
  """dllm (github.com/ZHZisZZ/dllm): predict masked tokens, at one noise level a document.

  Its MDLMTrainer, and with a block its BD3LMTrainer: clean blocks before. The softmax keeps the
  mask id, prompts stay clean. Its `right_shift_logits` is `objective.shift=1`.

  Args:
    block: tokens in a block; None: the document, seen whole.
    schedule: noise schedule; its `CosineAlphaScheduler` is "md4_cosine" with eps=0.
    weight: "schedule": -alpha' / (1 - alpha + 1e-6); "none" (its "uniform").
    norm: what sums are divided by. "token": noisable tokens; "sequence": those of each row, then
      rows; "row": rows (its "batch").
    min_time: times are drawn from [min_time, 1].
  """

  block: int | None = None
  schedule: MaskSchedule = LINEAR
  weight: str = "schedule"
  norm: str = "token"
  min_time: float = 1e-3
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    for name, known in (("weight", WEIGHTS), ("norm", NORMS)):
      if getattr(self, name) not in known:
        raise ValueError(f"Dllm: {name}={getattr(self, name)!r} is not one of {', '.join(known)}")
    if not 0 < self.min_time < 1:
      raise ValueError(f"Dllm: min_time={self.min_time} must lie in (0, 1)")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_BxL = at(draws["u_time"], document_start(batch)) * (1 - self.min_time) + self.min_time
    level_BxL, noisable_BxL = self.schedule.masked(t_BxL), streams.noisable(batch)
    weight_BxL = jnp.ones_like(t_BxL)
    if self.weight == "schedule":
      weight_BxL = -self.schedule.dalpha(t_BxL) / (level_BxL + 1e-6)
    count_B = noisable_BxL.sum(-1)
    if self.norm == "sequence":
      weight_BxL /= jnp.maximum(count_B, 1)[:, None]
    noisy = streams.one_stream(
      batch,
      masked_BxL=(draws["u_mask"] < level_BxL) & noisable_BxL,
      weight_BxL=weight_BxL,
      level_BxL=level_BxL,
      count_B=count_B if self.norm == "token" else count_B > 0,
      mask_id=self.mask_id,
    )
    return noisy if self.block is None else self.beside_clean(noisy, batch)

  def not_a_likelihood(self) -> str | None:
    if self.weight != "schedule":
      return f"weight={self.weight!r} weighs all noise levels alike"
    if self.norm != "token":
      return f"norm={self.norm!r} counts rows, not tokens"
    return "its weight lies a little below the bound's: 1e-6 more in the denominator"
