"""Direct preference optimisation of diffusion models: VRPO and Agentic VRPO."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.policy_gradient import OfCompletions
from dlm.types import Array, Aux, Batch, Denoiser, LossSum, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Preference(OfCompletions):
  """VRPO (LLaDA 1.5, 2505.19223): of two completions the better gains on a reference model.

  -log sigmoid(beta ((S_w - R_w) - (S_l - R_l))): S the estimate of log p of the better, w, and of
  the other, l, R the reference's by the same masks, which is what keeps the difference's variance
  low. Rows 2i and 2i + 1 are a pair; `Batch.extra["advantage_B"]` is above 0 for the better, below
  for the other. A pair whose advantages are equal is left out.

  Args:
    beta: how far the reference may be left; small: far.
    by_length: estimates are divided by the completion's tokens (DLLM-Searcher, 2602.07035).
  """

  beta: float = 0.1
  by_length: bool = False
  taught = True
  paired = True

  def __post_init__(self):
    super().__post_init__()
    if not self.beta > 0:
      raise ValueError(f"Preference: beta={self.beta} must be positive")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    noisy = self.copies(draws, batch)
    advantage_Px2 = batch.extra["advantage_B"].reshape(-1, 2)
    # Means of a pair are 0 but for rounding.
    told_P = jnp.sign(advantage_Px2[:, 0] - advantage_Px2[:, 1])
    pairs = jnp.maximum((told_P != 0).sum(), 1)
    extra = {
      "first_P": told_P,
      "weight_P": (told_P != 0) / pairs,
      "length_B": jnp.maximum(streams.noisable(batch).sum(-1), 1),
    }
    return noisy.replace(extra=noisy.extra | extra)

  def loss(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[LossSum, Aux]:
    """Sums over the pairs. `denoise`, `params`: the model's, and the reference's."""
    new_BxL, aux = self.estimate(denoise[0], params[0], noisy)
    reference_BxL = jax.lax.stop_gradient(self.estimate(denoise[1], params[1], noisy)[0])
    return self.sums(new_BxL, reference_BxL, noisy), aux

  def sums(self, new_BxL: Array, reference_BxL: Array, noisy: Noisy) -> LossSum:
    """The loss of estimates by token. Metrics: "margin", beta times the gain of the better over the
    other, and "preferred", the share of pairs where it is positive."""
    extra = noisy.extra
    gain_B = (new_BxL - reference_BxL).sum(-1)
    if self.by_length:
      gain_B = gain_B / extra["length_B"]
    gain_Px2 = gain_B.reshape(-1, 2)
    margin_P = self.beta * extra["first_P"] * (gain_Px2[:, 0] - gain_Px2[:, 1])
    weight_P = extra["weight_P"]
    metrics = {
      "margin": (weight_P * margin_P).sum(),
      "preferred": (weight_P * (margin_P > 0)).sum(),
    }
    total = -(weight_P * jax.nn.log_sigmoid(margin_P)).sum()
    return LossSum(total=total, count=noisy.count_B.sum(), metrics=metrics)
