"""I-DLM: one causal model drafts at masks and judges its drafts. arXiv 2604.11035; its code."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, block_start
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class IDlm(BlockTraining):
  """I-DLM (2604.11035): one causal model learns to draft at masks and to judge drafts.

  Next-token cross-entropy of the clean text, and of the same text with the answer all masked.
  A clean input sees what is before it, a noisy one what is before it in its block and the clean
  blocks before: a mask predicts the token after its own. Both streams are asked for every noisable
  token, so `targets` holds the text twice, as [noisy; clean] does. Loss per token.

  Args:
    block: masks that follow one another; decoding then strides by one more.
    clean_weight: weight of the clean stream (the authors: 0.2 for blocks of 1 and 2). None: such
      that it weighs as much as the other, by the losses of the rows at hand (theirs for 3). 0: it
      is not asked at all, as of gated adapters, which cannot change it.
  """

  clean_weight: float | None = 0.2
  shift = 1
  attention = masks.Causal()

  def __post_init__(self):
    super().__post_init__()
    if self.clean_weight is not None and self.clean_weight < 0:
      raise ValueError(
        f"IDlm: clean_weight={self.clean_weight} must not be negative (None: balanced)"
      )

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Nothing: all of an answer is masked."""
    del key, batch
    return {}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del draws, step
    noisable_BxL = streams.noisable(batch)
    level_BxL = noisable_BxL.astype(jnp.float32)
    noisy = streams.one_stream(
      batch, noisable_BxL, level_BxL, level_BxL, noisable_BxL.sum(-1), self.mask_id
    )
    mask = masks.noisy_clean_from(
      block_start(batch, self.block), self.block, causal_noise=True, causal_clean=True
    )
    noisy = streams.shifted_in_stream(streams.noisy_and_clean(noisy, mask), batch)
    if self.clean_weight == 0:
      return noisy.replace(count_B=noisy.weight_BxL.sum(-1))
    weight_BxL, ask_BxL, length = noisy.weight_BxL, noisy.ask_BxL, batch.tokens_BxL.shape[1]
    clean_weight = 1.0 if self.clean_weight is None else self.clean_weight
    return noisy.replace(
      targets_BxL=jnp.concatenate([batch.tokens_BxL, batch.tokens_BxL], axis=1),
      weight_BxL=jnp.concatenate([weight_BxL, clean_weight * weight_BxL], axis=1),
      ask_BxL=jnp.concatenate([ask_BxL, length + ask_BxL], axis=1),
      count_B=weight_BxL.sum(-1),
    )

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """[B, 2L] each: of the noisy stream, then of the clean one; where that is not asked, [B, L]."""
    loss_BxL, ce_BxL, aux = super().losses(denoise, params, noisy)
    if self.clean_weight is not None:
      return loss_BxL, ce_BxL, aux
    drafted_BxL, clean_BxL = jnp.split(ce_BxL, 2, axis=1)
    clean = jnp.maximum(clean_BxL.sum(), jnp.finfo(jnp.float32).tiny)
    balance = jax.lax.stop_gradient(drafted_BxL.sum() / clean)
    return jnp.concatenate([drafted_BxL, balance * clean_BxL], axis=1), ce_BxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it adds the losses of two predictions of each token"
