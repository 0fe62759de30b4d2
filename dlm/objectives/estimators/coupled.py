"""DiffuCoder's coupled masks. arXiv 2506.20639; apple/ml-diffucoder, coupled_grpo.py."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives.estimators.estimator import Estimator, answer, one_stream
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class CoupledMasks(Estimator):
  """DiffuCoder (2506.20639): two masks that together hide each token once, and all at once.

  A token's three log-probabilities, or rather two, since it is hidden in one of the complementary
  masks, are weighed by 1 and by one over the chance to be hidden, and halved. That sum is 1.5 times
  too large: on a model whose predictions ignore the context it has the mean 1.5 log p. `scale`
  2/3 takes that back; the authors' is 1.

  Args:
    ratio: the chance to be hidden by the first mask is drawn from here, once a batch.
    scale: of the estimate.
  """

  ratio: tuple[float, float] = (0.2, 0.8)
  scale: float = 1.0
  forwards = 3

  def __post_init__(self):
    lo, hi = self.ratio
    if not 0 < lo <= hi < 1:
      raise ValueError(f"CoupledMasks: ratio={self.ratio} must rise within (0, 1)")
    if not self.scale > 0:
      raise ValueError(f"CoupledMasks: scale={self.scale} must be positive")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_ratio" [] and "u_mask" [B, L]."""
    key_ratio, key_mask = jax.random.split(key)
    return {
      "u_ratio": jax.random.uniform(key_ratio),
      "u_mask": jax.random.uniform(key_mask, batch.tokens_BxL.shape),
    }

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    lo, hi = self.ratio
    t = lo + (hi - lo) * draws["u_ratio"]
    first_BxL = draws["u_mask"] < t
    masked_BxCxL = jnp.stack([jnp.ones_like(first_BxL), first_BxL, ~first_BxL], axis=1)
    weight_C = self.scale / 2 * jnp.stack([jnp.ones_like(t), 1 / t, 1 / (1 - t)])
    masked_BxCxL &= answer(batch)[:, None]
    return one_stream(batch, masked_BxCxL, weight_C[None, :, None], mask_id)
