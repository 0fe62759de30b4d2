"""WeDLM: a causal model fills masks; what is known stands first. arXiv 2512.22737; its code."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, block_start, of_block
from dlm.types import Array, Batch, Noisy

LEAST_RATIO = 1e-8


@dataclasses.dataclass(frozen=True)
class WeDlm(BlockTraining):
  """WeDLM (2512.22737): a causal model fills masks, reading what is known of a block first.

  Its code's fine-tuning. A block's known tokens come before its masks, all at their own positions,
  and an input sees what comes before it in that order, and the clean blocks before; so a mask sees
  every known token of its block. Each block draws a ratio m, and of its n noisable tokens
  round(m n) are masked. Their mean cross-entropy, weighed by 1 / m, is averaged with the next-token
  loss of the clean text, which is read causally.

  `targets` are in the order of the inputs, [noisy; clean], as both are asked; a document's first
  token is no next one. The softmax keeps the mask id. No shift: a mask predicts its own token.

  Args:
    block: theirs is 32.
    next_weight: of the next tokens' part; the sum is divided by 1 + next_weight.
  """

  next_weight: float = 1.0
  attention = masks.Causal()

  def __post_init__(self):
    super().__post_init__()
    if self.next_weight < 0:
      raise ValueError(f"WeDlm: next_weight={self.next_weight} must not be negative")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    start_BxL, noisable_BxL = block_start(batch, self.block), streams.noisable(batch)
    ratio_BxL = jnp.maximum(at(draws["u_time"], start_BxL), LEAST_RATIO)
    size_BxL = of_block(noisable_BxL, batch, start_BxL, self.block, False).sum(-1)
    count_BxL = jnp.round(ratio_BxL * size_BxL).astype(jnp.int32)  # half to even, as theirs
    score_BxL = jnp.where(noisable_BxL, -draws["u_mask"], -jnp.inf)
    masked_BxL = absorbing.highest_in_blocks(score_BxL, start_BxL, count_BxL)
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=1 / ((1 + self.next_weight) * ratio_BxL),
      level_BxL=jnp.where(masked_BxL, ratio_BxL, 0),
      count_B=jnp.where(masked_BxL, 1 / ratio_BxL, 0).sum(-1),
      mask_id=self.mask_id,
    )
    noisy = streams.noisy_and_clean(
      noisy,
      masks.noisy_clean_from(start_BxL, self.block, causal_noise=True, causal_clean=True),
    )
    noisy = streams.asking_next(noisy, batch, noisy.weight_BxL.sum() * self.next_weight)
    return self._reordered(noisy, start_BxL, masked_BxL)

  def _reordered(self, noisy: Noisy, start_BxL: Array, masked_BxL: Array) -> Noisy:
    """The noisy stream with the known tokens of each block first, each part by position."""
    length = start_BxL.shape[1]
    slot_BxL = jnp.broadcast_to(jnp.arange(length), start_BxL.shape)
    *_, order_BxL = jax.lax.sort((start_BxL, masked_BxL.astype(jnp.int32), slot_BxL), num_keys=3)
    order_BxW = jnp.concatenate([order_BxL, length + slot_BxL], axis=1)

    def ordered(x_BxW: Array) -> Array:
      return jnp.take_along_axis(x_BxW, order_BxW, axis=1)

    return noisy.replace(
      inputs_BxW=ordered(noisy.inputs_BxW),
      targets_BxL=ordered(noisy.targets_BxL),
      weight_BxL=ordered(noisy.weight_BxL),
      slot_BxW=ordered(noisy.slot_BxW),
      time_BxW=ordered(noisy.time_BxW),
    )

  def not_a_likelihood(self) -> str | None:
    return "it adds the losses of two predictions of each token"
