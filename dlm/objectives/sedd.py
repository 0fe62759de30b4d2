"""SEDD, absorbing: score entropy. arXiv 2310.16834; parametrised as in MDLM's code."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dlm.objectives.cross_entropy import logits, predict
from dlm.objectives.mdlm import Mdlm
from dlm.types import Array, Aux, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Sedd(Mdlm):
  """SEDD (2310.16834): MDLM's noise with the score-entropy loss: learn ratios of probabilities.

  Continuous time. Forms [B, L, V] logits.

  With log score_v = logit_v - log(expm1(sigma)) - log(V - 1), as the authors scale it, and
  dsigma / expm1(sigma) = w, the loss of a masked token is
  w (sum_{v != mask} exp(logit_v) / (V - 1) - logit_x0 + log(V - 1) - 1): sigma itself drops out.
  """

  shiftable = False
  annealable = False
  exact_count = False

  def __post_init__(self):
    super().__post_init__()
    if self.timesteps:
      raise ValueError(f"Sedd: timesteps={self.timesteps} must be 0, its time is continuous")

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """Score entropy, and the cross-entropy of the normalised scores."""
    asked_BxL = noisy.weight_BxL > 0
    head, aux = predict(denoise, params, noisy)
    logits_BxLxV = logits(head)
    logits_BxLxV = jnp.where(asked_BxL[..., None], logits_BxLxV, 0)  # exp may overflow elsewhere
    others = logits_BxLxV.shape[-1] - 1
    scores_BxLxV = jnp.where(
      jnp.arange(others + 1)[None, None] == self.mask_id, -jnp.inf, logits_BxLxV
    )
    lse_BxL = jax.nn.logsumexp(scores_BxLxV, axis=-1)
    target_BxLx1 = noisy.targets_BxL[..., None]
    target_BxL = jnp.take_along_axis(logits_BxLxV, target_BxLx1, axis=-1)[..., 0]
    entropy_BxL = jnp.exp(lse_BxL - math.log(others)) - target_BxL + math.log(others) - 1
    ce_BxL = jnp.where(asked_BxL, lse_BxL - target_BxL, 0)
    return noisy.weight_BxL * entropy_BxL, ce_BxL, aux
