"""dParallel: a model is made certain of what it gets right. Its code: czg1225/dParallel."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.block import both_views, interleaved
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.objectives.divergence import by_tiles, likeliest
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, Noisy, Params


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
    block_BxL, behind_BxL = drawn_block(batch, draws["u_block"], self.size)
    masked_BxL = block_BxL & (draws["u_mask"] < self.share)
    noisy = two_views(batch, block_BxL, behind_BxL, masked_BxL, self.mask_id)
    learned_RxL = noisy.weight_BxL
    return noisy.replace(
      weight_BxL=learned_RxL / jnp.maximum(learned_RxL.sum(-1, keepdims=True), 1)
    )

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    head, aux = predict(denoise, params, noisy)
    ce_RxL = cross_entropy(head, noisy, self.forbidden)
    asked_RxL = noisy.weight_BxL > 0
    right_RxL = asked_RxL & (likeliest(head) == noisy.targets_BxL)
    certain_RxL = entropies(head, right_RxL, self.temperature)
    certain_RxL = certain_RxL / jnp.maximum(right_RxL.sum(-1, keepdims=True), 1)
    return noisy.weight_BxL * ce_RxL + self.entropy * certain_RxL, ce_RxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it rewards certainty, and averages over the masks of a row"


def drawn_block(batch: Batch, u_B: Array, size: int | Array | None) -> tuple[Array, Array]:
  """One block of each row's answer, and what stands behind it, bool [B, L].

  Args:
    u_B: draws it. The last block is what is left of the answer, and may be empty.
    size: tokens of a block; None: the whole answer is the only one.
  """
  answer_BxL = streams.noisable(batch)
  offset_BxL = jnp.cumsum(answer_BxL, axis=1) - 1
  n_B = answer_BxL.sum(-1)
  last_B = jnp.zeros_like(n_B) if size is None else n_B // size
  index_B = jnp.minimum(jnp.floor(u_B * (last_B + 1)).astype(jnp.int32), last_B)
  begin_B = index_B * (0 if size is None else size)
  end_B = jnp.where(index_B == last_B, n_B, begin_B + (0 if size is None else size))
  behind_BxL = answer_BxL & (offset_BxL >= end_B[:, None])
  return answer_BxL & ~behind_BxL & (offset_BxL >= begin_B[:, None]), behind_BxL


def two_views(
  batch: Batch, block_BxL: Array, behind_BxL: Array, masked_BxL: Array, mask_id: int
) -> Noisy:
  """Each row twice, side by side: `masked` of the block is hidden, then the rest of the block.

  What stands behind the block is hidden in both and not learned. Masks of the block weigh 1.
  """
  of_block = batch.replace(noisable_BxL=block_BxL)
  views, learned_RxL = both_views(of_block, masked_BxL)
  hidden_RxL = learned_RxL | interleaved(behind_BxL, behind_BxL)
  n_B = streams.noisable(batch).sum(-1)
  level_R = hidden_RxL.sum(-1) / jnp.maximum(interleaved(n_B, n_B), 1)
  return streams.one_stream(
    views,
    masked_BxL=hidden_RxL,
    weight_BxL=learned_RxL,
    level_BxL=jnp.broadcast_to(level_R[:, None], hidden_RxL.shape),
    count_B=jnp.full(len(hidden_RxL), 0.5),
    mask_id=mask_id,
  )


def entropies(head: LogitHead, asked_BxL: Array, temperature: float) -> Array:
  """Of each distribution that is asked, at `temperature`, in nats, float32 [B, L]; else 0."""

  def of_logits(logits_NxV: Array) -> Array:
    logp_NxV = jax.nn.log_softmax(logits_NxV / temperature)
    return -(jnp.exp(logp_NxV) * logp_NxV).sum(-1)

  return by_tiles(of_logits, (head,), asked_BxL)
