"""d3LLM: a model learns in the order in which its teacher wrote. arXiv 2601.07568; its code."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.objectives.divergence import likeliest
from dlm.objectives.dparallel import drawn_block, entropies, two_views
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params

ORDERS = ("trace", "random")


@dataclasses.dataclass(frozen=True)
class D3llm(Objective):
  """d3LLM (2601.07568): hide of a block what its teacher had not yet written; be certain of it.

  Rows are a teacher's answers, with the forward that wrote each token. A block of the answer is
  drawn, and a noise level t: the block is shown as it stood once all before it and a share of
  1 - t of its own tokens were written. What stands before is clean, what stands behind is masked
  and not learned; a second view hides the other tokens of the block. The loss is a quarter of: the
  mean cross-entropies of both views, and `entropy` times the mean entropy, at `temperature`, of
  tokens whose likeliest id is right. Means are over the batch, as in the authors' code; those of
  the entropy over a shard's microbatch.

  The curriculum: blocks grow, and the least t rises to the largest, over `updates`.

  Args:
    sizes: tokens of a block at equal distances in training; between two it grows linearly.
    updates: of the curriculum; 0: blocks of the last size, and t of all the range.
    noise: t is drawn from this range.
    order: "random" hides tokens of the block at random, each with probability t.
    entropy: 2 for LLaDA, 1 for Dream.
    both: the entropy of both views counts (Dream), not of the first alone (LLaDA).
  """

  mask_id: int
  sizes: tuple[int, ...] = (16, 16, 24, 24, 32, 32)
  updates: int = 0
  noise: tuple[float, float] = (0.0, 0.8)
  order: str = "trace"
  entropy: float = 2.0
  both: bool = False
  temperature: float = 0.5
  shiftable = True
  summable = False  # the entropy is a mean over right guesses, of what a device computes at once

  def __post_init__(self):
    streams.check_mask_id("D3llm", self.mask_id)
    if not self.sizes or min(self.sizes) < 1:
      raise ValueError(f"D3llm: sizes={self.sizes} must be one or more numbers of at least 1")
    if self.updates < 0:
      raise ValueError(f"D3llm: updates={self.updates} must not be negative")
    lo, hi = self.noise
    if not 0 <= lo <= hi <= 1:
      raise ValueError(f"D3llm: noise={self.noise} must hold 0 <= lo <= hi <= 1")
    if self.order not in ORDERS:
      raise ValueError(f"D3llm: order={self.order!r} is not one of {', '.join(ORDERS)}")
    if self.entropy < 0:
      raise ValueError(f"D3llm: entropy={self.entropy} must not be negative")
    if not self.temperature > 0:
      raise ValueError(f"D3llm: temperature={self.temperature} must be positive")

  @property
  def traced(self) -> bool:
    return self.order == "trace"

  def size_at(self, step: Array) -> Array:
    """Tokens of a block at an update."""
    sizes, last = jnp.array(self.sizes), len(self.sizes) - 1
    if not self.updates:
      return sizes[last]
    index, part = jnp.divmod(step * len(self.sizes), self.updates)
    index = jnp.minimum(index, last)
    growth = sizes[jnp.minimum(index + 1, last)] - sizes[index]
    return sizes[index] + growth * part // self.updates

  def least_noise_at(self, step: Array) -> Array:
    """The least t of an update."""
    lo, hi = self.noise
    return jnp.float32(lo) + (hi - lo) * (step / self.updates if self.updates else 0.0)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_block" and "u_time" [B], and "u_mask" [B, L] where the order is random."""
    key_block, key_time, key_mask = jax.random.split(key, 3)
    rows, length = batch.tokens_BxL.shape
    draws = {
      "u_block": jax.random.uniform(key_block, (rows,)),
      "u_time": jax.random.uniform(key_time, (rows,)),
    }
    if not self.traced:
      draws["u_mask"] = jax.random.uniform(key_mask, (rows, length))
    return draws

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Both views of a row stand side by side."""
    block_BxL, behind_BxL = drawn_block(batch, draws["u_block"], self.size_at(step))
    least = jnp.minimum(self.least_noise_at(step), self.noise[1])
    t_Bx1 = (least + (self.noise[1] - least) * draws["u_time"])[:, None]
    if self.traced:
      before_Bx1 = (streams.noisable(batch) & ~block_BxL & ~behind_BxL).sum(-1, keepdims=True)
      shown_Bx1 = jnp.floor((1 - t_Bx1) * block_BxL.sum(-1, keepdims=True))
      masked_BxL = block_BxL & (written_before(batch) > before_Bx1 + shown_Bx1)
    else:
      masked_BxL = block_BxL & (draws["u_mask"] < t_Bx1)
    noisy = two_views(batch, block_BxL, behind_BxL, masked_BxL, self.mask_id)
    learned_Bx2xL = _by_view(noisy.weight_BxL)
    per_view_1x2x1 = jnp.maximum(learned_Bx2xL.sum((0, 2), keepdims=True), 1)
    weight_Bx2xL = learned_Bx2xL * len(learned_Bx2xL) / (4 * per_view_1x2x1)
    return noisy.replace(weight_BxL=weight_Bx2xL.reshape(noisy.weight_BxL.shape))

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    head, aux = predict(denoise, params, noisy)
    ce_RxL = cross_entropy(head, noisy, self.forbidden)
    right_Bx2xL = _by_view((noisy.weight_BxL > 0) & (likeliest(head) == noisy.targets_BxL))
    if not self.both:
      right_Bx2xL &= jnp.array([True, False])[None, :, None]
    certain_RxL = entropies(head, right_Bx2xL.reshape(ce_RxL.shape), self.temperature)
    per_view_1x2x1 = jnp.maximum(right_Bx2xL.sum((0, 2), keepdims=True), 1)
    certain_Bx2xL = _by_view(certain_RxL) * len(right_Bx2xL) / (4 * per_view_1x2x1)
    loss_RxL = noisy.weight_BxL * ce_RxL + self.entropy * certain_Bx2xL.reshape(ce_RxL.shape)
    return loss_RxL, ce_RxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it rewards certainty, and averages over the masks of a batch"


def written_before(batch: Batch) -> Array:
  """How many tokens of a row's answer forwards before its own wrote, [B, L]; L outside of it."""
  length = batch.tokens_BxL.shape[1]
  when_BxL = batch.extra["when"]
  when_BxL = jnp.where(
    streams.noisable(batch) & (when_BxL >= 0), when_BxL, jnp.iinfo(jnp.int32).max
  )
  rank_BxL = jax.vmap(jnp.searchsorted)(jnp.sort(when_BxL, axis=1), when_BxL)
  return jnp.where(when_BxL == jnp.iinfo(jnp.int32).max, length, rank_BxL)


def _by_view(values_RxL: Array) -> Array:
  return values_RxL.reshape(-1, 2, values_RxL.shape[-1])
