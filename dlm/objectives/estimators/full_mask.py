"""d1's estimate: one forward, the whole answer masked. arXiv 2504.12216; its code, and wd1's."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives.estimators.estimator import Estimator, answer, one_stream, prompt
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class FullMask(Estimator):
  """d1 (2504.12216): each token given the prompt alone, as if all were written at once.

  One forward and no variance but the prompt's; biased, since no token sees another.

  Args:
    prompt_mask: each token of the prompt is masked with this probability, so that several updates
      on the same rows see different prompts.
  """

  prompt_mask: float = 0.15
  forwards = 1

  def __post_init__(self):
    if not 0 <= self.prompt_mask < 1:
      raise ValueError(f"FullMask: prompt_mask={self.prompt_mask} must lie in [0, 1)")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_prompt" [B, L]."""
    return {"u_prompt": jax.random.uniform(key, batch.tokens_BxL.shape)}

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    masked_BxL = answer(batch) | (prompt(batch) & (draws["u_prompt"] < self.prompt_mask))
    return one_stream(batch, masked_BxL[:, None], jnp.ones((1, 1, 1)), mask_id)
