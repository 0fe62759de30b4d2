"""Next-token prediction: the autoregressive model that diffusion is compared with."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, LossSum, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Autoregressive(Objective):
  """Autoregression: predict each token from those before it in its document.

  A document's first token is never predicted. The mask id, which diffusion models of the same
  tokenizer need, is given no probability (as in the AR baseline of BD3-LM's code, 2503.09573).
  Loss per predicted token; at i that of token i + 1.
  """

  mask_id: int
  shift = 1
  attention = masks.Causal()

  def __post_init__(self):
    streams.check_mask_id("Autoregressive", self.mask_id)

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del draws, step
    length = batch.tokens_BxL.shape[1]
    index_BxL = jnp.broadcast_to(jnp.arange(length), batch.tokens_BxL.shape)
    asked_BxL = (
      jnp.roll(streams.noisable(batch), -1, axis=1)
      & (jnp.roll(batch.segment_BxL, -1, axis=1) == batch.segment_BxL)
      & (index_BxL < length - 1)
    )
    return Noisy(
      inputs_BxW=batch.tokens_BxL,
      targets_BxL=jnp.roll(batch.tokens_BxL, -1, axis=1),
      weight_BxL=asked_BxL.astype(jnp.float32),
      count_B=asked_BxL.sum(-1).astype(jnp.float32),
      slot_BxW=batch.position_BxL,
      time_BxW=jnp.zeros(batch.tokens_BxL.shape, jnp.float32),
      mask=masks.in_segments(masks.Causal()(index_BxL, length), batch.segment_BxL),
    )

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[LossSum, Aux]:
    """Without metrics: there is no noise to tell losses by."""
    sums, aux = super().loss(denoise, params, noisy)
    return sums.replace(metrics={}), aux

  def not_a_likelihood(self) -> str | None:
    """None: exact, given the first token of each document."""
    return None
