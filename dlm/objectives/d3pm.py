"""D3PM, absorbing, discrete time. arXiv 2107.03006; the bound as MDLM's code computes it."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.cross_entropy import logits, predict
from dlm.objectives.mdlm import Mdlm
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class D3pm(Mdlm):
  """D3PM (2107.03006): MDLM's noise in T steps, with the bound of the whole reverse process.

  The model may also predict the mask id, and must reproduce clean text at t = 0.

  Two forwards: the diffusion term of the masked tokens and the reconstruction term of all. Forms
  [B, L, V] logits.

  Args:
    forbid_mask: give the mask id no probability (MDLM's `subs_masking`).
  """

  timesteps: int = 1000
  forbid_mask: bool = False
  shiftable = False
  annealable = False
  exact_count = False

  def __post_init__(self):
    super().__post_init__()
    if not self.timesteps:
      raise ValueError("D3pm: timesteps=0 must be positive, its time is discrete")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Adds to `extra`: "t_B", the time of each row, and "scored_BxL", what is reconstructed."""
    noisy = super().corrupt_with(draws, batch, step)
    return noisy.replace(extra={"t_B": self.times_of(draws), "scored_BxL": streams.noisable(batch)})

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """The bound, and the cross-entropy of the masked tokens."""
    logp_BxL, logp_mask_BxL, aux = self._log_probs(denoise, params, noisy)
    clean = noisy.replace(inputs_BxW=noisy.targets_BxL, time_BxW=jnp.zeros_like(noisy.time_BxW))
    logp_clean_BxL, _, aux_clean = self._log_probs(denoise, params, clean)
    asked_BxL = noisy.weight_BxL > 0
    bound_BxL = self._bound(logp_BxL, jnp.exp(logp_mask_BxL), noisy.extra["t_B"][:, None])
    loss_BxL = jnp.where(asked_BxL, bound_BxL, 0)
    loss_BxL += jnp.where(noisy.extra["scored_BxL"], -logp_clean_BxL, 0)
    return loss_BxL, jnp.where(asked_BxL, -logp_BxL, 0), aux + aux_clean

  def _log_probs(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """Log-probabilities of the targets and of the mask id, [B, L] each."""
    head, aux = predict(denoise, params, noisy)
    logits_BxLxV = logits(head)
    if self.forbid_mask:
      is_mask_V = jnp.arange(logits_BxLxV.shape[-1]) == self.mask_id
      logits_BxLxV = jnp.where(is_mask_V[None, None], -jnp.inf, logits_BxLxV)
    logp_BxLxV = jax.nn.log_softmax(logits_BxLxV)
    target_BxLx1 = noisy.targets_BxL[..., None]
    target_BxL = jnp.take_along_axis(logp_BxLxV, target_BxLx1, axis=-1)[..., 0]
    return target_BxL, logp_BxLxV[..., self.mask_id], aux

  def _bound(self, logp_BxL: Array, p_mask_BxL: Array, t_Bx1: Array) -> Array:
    """T times the KL of one reverse step at a masked token, from t to s, with alpha = 1 - t.

    The authors' two logarithms of the stay term are one here: their difference is of order 1/T. At
    the first step (s = 0) that term has weight 0 and, in their code, a divisor 0: it is left out.
    """
    step = 1 / self.timesteps
    t_Bx1 = jnp.minimum(t_Bx1, 1 - 1e-4)
    first_Bx1 = t_Bx1 < 1.5 * step
    s_Bx1 = jnp.where(first_Bx1, 1.0, t_Bx1 - step)
    reveal_BxL = jnp.log1p((1 - t_Bx1) * p_mask_BxL / t_Bx1) - logp_BxL
    drop_BxL = step * p_mask_BxL / (t_Bx1 * (s_Bx1 + (1 - s_Bx1) * p_mask_BxL))
    stay_BxL = jnp.where(first_Bx1, 0, self.timesteps * s_Bx1 * jnp.log1p(-drop_BxL))
    return (reveal_BxL + stay_BxL) / t_Bx1
