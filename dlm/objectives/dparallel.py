"""dParallel: a model is made certain of what it gets right. Its code: czg1225/dParallel."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.block import both_views, interleaved
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.objectives.divergence import by_tiles, likeliest
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class DParallel(Objective):
  """dParallel (czg1225/dParallel): learn the answer, and be certain where the guess is right.

  A block of the answer is drawn; about half of it is masked, in a second view the other half. What
  stands before is clean, what stands behind is masked and not learned. Each view's loss is the mean
  cross-entropy of its masks, and `entropy` times the mean entropy, at `temperature`, of those whose
  likeliest id is right: a sharper distribution passes a threshold sooner. Means are of a row, as in
  the authors' code for one row a batch; then over rows. Answers should be a teacher's own.

  Args:
    size: tokens of a block; the last is what is left, and may be empty: such a row learns nothing.
      None: the whole answer (Dream).
    share: of a block that is masked, in expectation.
    entropy: 2 for LLaDA, 1 for Dream.
  """

  mask_id: int
  size: int | None = 32
  share: float = 0.5005
  entropy: float = 2.0
  temperature: float = 0.5
  shiftable = True

  def __post_init__(self):
    streams.check_mask_id("DParallel", self.mask_id)
    if self.size is not None and self.size < 1:
      raise ValueError(f"DParallel: size={self.size} must be at least 1 (None: the whole answer)")
    if not 0 < self.share < 1:
      raise ValueError(f"DParallel: share={self.share} must lie in (0, 1)")
    if self.entropy < 0:
      raise ValueError(f"DParallel: entropy={self.entropy} must not be negative")
    if not self.temperature > 0:
      raise ValueError(f"DParallel: temperature={self.temperature} must be positive")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_block" [B] and "u_mask" [B, L]."""
    key_block, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    return {
      "u_block": jax.random.uniform(key_block, (rows,)),
      "u_mask": jax.random.uniform(key_mask, (rows, length)),
    }

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Both views of a row stand side by side."""
    del step
    answer_BxL = streams.noisable(batch)
    offset_BxL = jnp.cumsum(answer_BxL, axis=1) - 1
    n_B = answer_BxL.sum(-1)
    size = batch.tokens_BxL.shape[1] if self.size is None else self.size
    last_B = n_B // size if self.size is not None else jnp.zeros_like(n_B)
    index_B = jnp.minimum(jnp.floor(draws["u_block"] * (last_B + 1)).astype(jnp.int32), last_B)
    end_B = jnp.where(index_B == last_B, n_B, (index_B + 1) * size)
    behind_BxL = answer_BxL & (offset_BxL >= end_B[:, None])
    block_BxL = answer_BxL & ~behind_BxL & (offset_BxL >= (index_B * size)[:, None])
    of_block = batch.replace(noisable_BxL=block_BxL)
    views, learned_RxL = both_views(of_block, block_BxL & (draws["u_mask"] < self.share))
    hidden_RxL = learned_RxL | interleaved(behind_BxL, behind_BxL)
    weight_RxL = learned_RxL / jnp.maximum(learned_RxL.sum(-1, keepdims=True), 1)
    level_R = hidden_RxL.sum(-1) / jnp.maximum(interleaved(n_B, n_B), 1)
    return streams.one_stream(
      views,
      masked_BxL=hidden_RxL,
      weight_BxL=weight_RxL,
      level_BxL=jnp.broadcast_to(level_R[:, None], hidden_RxL.shape),
      count_B=jnp.full(len(hidden_RxL), 0.5),
      mask_id=self.mask_id,
    )

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    head, aux = predict(denoise, params, noisy)
    ce_RxL = cross_entropy(head, noisy, self.forbidden)
    asked_RxL = noisy.weight_BxL > 0
    right_RxL = asked_RxL & (likeliest(head) == noisy.targets_BxL)

    def of_logits(logits_NxV: Array) -> Array:
      logp_NxV = jax.nn.log_softmax(logits_NxV / self.temperature)
      return -(jnp.exp(logp_NxV) * logp_NxV).sum(-1)

    certain_RxL = by_tiles(of_logits, (head,), right_RxL)
    certain_RxL = certain_RxL / jnp.maximum(right_RxL.sum(-1, keepdims=True), 1)
    return noisy.weight_BxL * ce_RxL + self.entropy * certain_RxL, ce_RxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it rewards certainty, and averages over the masks of a row"
