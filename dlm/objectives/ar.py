"""Next-token prediction: the autoregressive model that diffusion is compared with."""

import dataclasses

import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.cross_entropy import cross_entropy
from dlm.types import Array, Batch, Denoiser, LossSum, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Autoregressive:
  """Input i predicts token i + 1 of the same document; its first token is never predicted.

  The mask id, which diffusion models of the same tokenizer need, is given no probability (as in
  the AR baseline of BD3-LM's code, arXiv 2503.09573). Loss per predicted token.
  """

  mask_id: int

  def __post_init__(self):
    streams.check_mask_id("Autoregressive", self.mask_id)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Nothing is random."""
    del key, batch
    return {}

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

  def corrupt(self, key: Array, batch: Batch, step: Array) -> Noisy:
    return self.corrupt_with(self.draw(key, batch), batch, step)

  def token_losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> Array:
    """[B, L]: at i the loss of token i + 1."""
    return cross_entropy(denoise, params, noisy, (self.mask_id,))

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> LossSum:
    total = self.token_losses(denoise, params, noisy).sum()
    return LossSum(total=total, count=noisy.count_B.sum(), metrics={})

  def not_a_likelihood(self) -> str | None:
    """None: exact, given the first token of each document."""
    return None
