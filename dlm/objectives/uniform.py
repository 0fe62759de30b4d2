"""Uniform-state noise: corrupted tokens become random ids. NeMo Automodel, for DiffusionGemma."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import uniform
from dlm.diffusion.schedules import LLADA_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, block_start, document_start
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class Uniform(BlockTraining):
  """NeMo Automodel, for DiffusionGemma: noise is random ids, and every token is predicted.

  Mean cross-entropy of all noisable tokens: nothing tells the model which are corrupted.

  One noise level a block; prompts are never corrupted. No shift. DiffusionGemma's own training is
  not public: this is `corrupt_uniform_random` and the flat loss of NVIDIA NeMo Automodel.

  Args:
    block: tokens that share a level, behind clean blocks; None: the document, seen whole.
    vocab: random ids are below it. The authors draw the mask id too, if there is one; here a model
      never sees it, as in sampling (policy "renoise").
    schedule: gives the level; the authors' is 0.999 t + 0.001.
  """

  block: int | None = dataclasses.field()
  vocab: int
  schedule: MaskSchedule = LLADA_LINEAR

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 2:
      raise ValueError(f"Uniform: vocab={self.vocab} must be at least 2")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """As other block training, and "random" [B, L]: what each token becomes."""
    key_noise, key_ids = jax.random.split(key)
    random_BxL = uniform.random_ids(key_ids, batch.tokens_BxL.shape, self.vocab, self.mask_id)
    return super().draw(key_noise, batch) | {"random": random_BxL}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    noisable_BxL = streams.noisable(batch)
    whole = self.block is None
    start_BxL = document_start(batch) if whole else block_start(batch, self.block)
    level_BxL = self.schedule.masked(at(draws["u_time"], start_BxL))
    corrupt_BxL = (draws["u_mask"] < level_BxL) & noisable_BxL
    asked = streams.one_stream(
      batch, noisable_BxL, jnp.ones_like(level_BxL), level_BxL, noisable_BxL.sum(-1), self.mask_id
    )
    noisy = asked.replace(inputs_BxW=jnp.where(corrupt_BxL, draws["random"], batch.tokens_BxL))
    return noisy if whole else self.beside_clean(noisy, batch)

  def not_a_likelihood(self) -> str | None:
    return "it scores tokens that are not corrupted too, all with weight 1"
