"""MDPO: every step of an answer is rewarded, and learned by itself. arXiv 2508.13148; its code."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.cross_entropy import cross_entropy, loss_sum, predict, tempered
from dlm.objectives.estimators.estimator import answer
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, LossSum, Noisy, Params

TINY = 1e-4


@dataclasses.dataclass(frozen=True)
class Mdpo(Objective):
  """MDPO (2508.13148): what the model made of an answer's state becomes likelier if it was better.

  A row is a state of a roll-out (`dlm.stepwise`): its tokens are the whole answer that the model
  predicted there, `Batch.extra["hidden_BxL"]` says what of it stood masked, "confidence_BxL" how
  probable each prediction was, and "advantage_B" what that forward was worth. The loss is a mean
  over all masks, each weighed by its confidence, of -A n / k log p, of k masks in an answer of n
  slots, and of the divergence from the reference, (log p - log p of it)^2 / 2. As a state is
  learned once, its ratio to the policy that wrote it is 1, and there is nothing to clip.

  Args:
    temperature: of the roll-outs: log p is that of logits divided by it.
    kl_weight: of the divergence; 0: there is no reference.
  """

  mask_id: int
  temperature: float = 0.4
  kl_weight: float = 0.02
  shiftable = True
  traced = True
  rewarded = True
  stepwise = True
  teacher_shift = 0

  def __post_init__(self):
    streams.check_mask_id("Mdpo", self.mask_id)
    if not self.temperature > 0:
      raise ValueError(f"Mdpo: temperature={self.temperature} must be positive")
    if self.kl_weight < 0:
      raise ValueError(f"Mdpo: kl_weight={self.kl_weight} must not be negative")

  @property
  def taught(self) -> bool:
    return self.kl_weight > 0

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """`extra`: "policy_weight_BxL" and "kl_weight_BxL" of each mask, over the whole batch."""
    del draws, step
    answer_BxL, hidden_BxL = answer(batch), batch.extra["hidden_BxL"]
    learned_BxL = hidden_BxL & streams.noisable(batch)
    n_Bx1 = answer_BxL.sum(-1, keepdims=True)
    k_Bx1 = (hidden_BxL & answer_BxL).sum(-1, keepdims=True)
    rows = len(hidden_BxL)
    noisy = streams.one_stream(
      batch,
      masked_BxL=hidden_BxL,
      weight_BxL=learned_BxL,
      level_BxL=jnp.broadcast_to(k_Bx1 / jnp.maximum(n_Bx1, 1), hidden_BxL.shape),
      count_B=jnp.full(rows, 1 / rows),
      mask_id=self.mask_id,
    )
    share_BxL = learned_BxL * batch.extra["confidence_BxL"] / (learned_BxL.sum() + TINY)
    extra = {
      "policy_weight_BxL": -batch.extra["advantage_B"][:, None]
      * n_Bx1
      / (k_Bx1 + TINY)
      * share_BxL,
      "kl_weight_BxL": self.kl_weight * share_BxL,
    }
    return noisy.replace(extra=extra)

  def loss(self, denoise: Any, params: Any, noisy: Noisy) -> tuple[LossSum, Aux]:
    """Sums over the batch. `denoise`, `params`: pairs, the reference's second, where it has one."""
    logp_BxL, anchor_BxL, aux = self._estimates(denoise, params, noisy)
    return self.sums(logp_BxL, anchor_BxL, noisy), aux

  def sums(self, logp_BxL: Array, anchor_BxL: Array, noisy: Noisy) -> LossSum:
    """Of log-probabilities: the model's, the reference's. Metrics: "policy" and "kl", of the loss
    the parts."""
    policy_BxL, kl_BxL = self._parts(logp_BxL, anchor_BxL, noisy)
    metrics = {"policy": policy_BxL.sum(), "kl": kl_BxL.sum()}
    return loss_sum(noisy, policy_BxL + kl_BxL, -logp_BxL).replace(metrics=metrics)

  def losses(self, denoise: Any, params: Any, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """Of each mask, [B, L]: its part of the loss, and -log p. `denoise`, `params`: see `loss`."""
    logp_BxL, anchor_BxL, aux = self._estimates(denoise, params, noisy)
    policy_BxL, kl_BxL = self._parts(logp_BxL, anchor_BxL, noisy)
    return policy_BxL + kl_BxL, -logp_BxL, aux

  def _parts(self, logp_BxL: Array, anchor_BxL: Array, noisy: Noisy) -> tuple[Array, Array]:
    ratio_BxL = jnp.exp(logp_BxL - jax.lax.stop_gradient(logp_BxL))
    policy_BxL = noisy.extra["policy_weight_BxL"] * ratio_BxL
    return policy_BxL, noisy.extra["kl_weight_BxL"] * (logp_BxL - anchor_BxL) ** 2 / 2

  def _estimates(self, denoise: Any, params: Any, noisy: Noisy) -> tuple[Array, Array, Aux]:
    if not self.taught:
      logp_BxL, aux = self._logp(denoise, params, noisy)
      return logp_BxL, jax.lax.stop_gradient(logp_BxL), aux
    logp_BxL, aux = self._logp(denoise[0], params[0], noisy)
    anchor_BxL, _ = self._logp(denoise[1], params[1], noisy)
    return logp_BxL, jax.lax.stop_gradient(anchor_BxL), aux

  def _logp(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Aux]:
    """log p of each target, [B, L]; 0 where not asked."""
    head, aux = predict(denoise, params, noisy)
    return -cross_entropy(tempered(head, self.temperature), noisy, self.forbidden), aux

  def not_a_likelihood(self) -> str | None:
    return "it weighs predictions by what they are worth"
