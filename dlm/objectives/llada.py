"""LLaDA: pre-training and supervised fine-tuning. arXiv 2502.09992, 2.2 and 2.3; GUIDELINES.md.

The softmax keeps the mask id, and the weight is 1/p (the paper prints 1/t; its code has 1/p).
"""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion.schedules import LLADA_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.row import RowTraining
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class _Llada(RowTraining):
  """What pre-training and fine-tuning share: the noise of a row."""

  schedule: MaskSchedule = LLADA_LINEAR
  shiftable = True
  annealable = True
  exact_count = True

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    t_B = self.times_of(draws)
    level_B, weight_B = self.schedule.masked(t_B), self.schedule.weight(t_B)
    return streams.noisy_rows(batch, draws["u_mask"], level_B, weight_B, self.mask_id)


@dataclasses.dataclass(frozen=True)
class Llada(_Llada):
  """LLaDA pre-training (2502.09992): predict masked tokens, weighed by 1 / their probability.

  Sum of ce / p over all noisable tokens (the authors' rows are full: B * L).

  Args:
    random_length: probability that a batch is cut to one length, uniform on 1..L. What is cut off
      becomes padding, so shapes stay as they are.
  """

  random_length: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.random_length <= 1:
      raise ValueError(f"Llada: random_length={self.random_length} must be a probability")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "u_cut" and "length", both scalar."""
    key_noise, key_cut, key_length = jax.random.split(key, 3)
    return super().draw(key_noise, batch) | {
      "u_cut": jax.random.uniform(key_cut),
      "length": jax.random.randint(key_length, (), 1, batch.tokens_BxL.shape[1] + 1),
    }

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    index_L = jnp.arange(batch.tokens_BxL.shape[1])
    kept_L = (index_L < draws["length"]) | (draws["u_cut"] >= self.random_length)
    cut = batch.replace(segment_BxL=jnp.where(kept_L[None], batch.segment_BxL, 0))
    return super().corrupt_with(draws, cut, step)

  def not_a_likelihood(self) -> str | None:
    if self.random_length:
      return f"random_length={self.random_length} cuts rows off; 0 keeps them whole"
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"


@dataclasses.dataclass(frozen=True)
class LladaSft(_Llada):
  """LLaDA fine-tuning (2502.09992): as in pre-training, but prompts stay clean.

  Each row's sum of ce / p is divided by its answer length.

  The answer is all that is noisable: the data decides whether EOS padding belongs to it (the
  authors pad every answer with EOS to the longest row and score that). Loss per row.
  """

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    noisy = super().corrupt_with(draws, batch, step)
    weight_BxL = noisy.weight_BxL / jnp.maximum(noisy.count_B, 1)[:, None]
    has_answer_B = (noisy.count_B > 0).astype(jnp.float32)
    return noisy.replace(weight_BxL=weight_BxL, count_B=has_answer_B)

  def not_a_likelihood(self) -> str | None:
    return "it divides each row by its answer length and counts rows, not tokens"
