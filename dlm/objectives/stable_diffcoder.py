"""Stable-DiffCoder: small blocks, each with something to predict. arXiv 2601.15892, 3.2 and 3.3."""

import dataclasses

import jax.numpy as jnp

from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.block import BlockTraining, at, block_start
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class StableDiffcoder(BlockTraining):
  """Stable-DiffCoder (2601.15892): small blocks, in each of which at least one token is masked.

  ce / rate over all noisable tokens, one rate per block, clean blocks before. The rate is uniform
  on [0, 1], and what is below 1 / block is 1 / block: in blocks of 4 a fifth of all draws would
  mask nothing. Where nothing is masked even so, one token of the block is.

  While it warms up, rates are drawn from [0, bound], where the bound grows linearly to 1, and
  nothing is weighed by them. Packed documents do not see each other here; the authors' do.

  Args:
    block: theirs is 4.
    warmup: updates until the bound is 1; 0: it always is. They do not say how many.
    warmup_from: the bound at the first update.
  """

  warmup: int = 0
  warmup_from: float = 1e-3
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    if self.warmup < 0:
      raise ValueError(f"StableDiffcoder: warmup={self.warmup} must not be negative (0: none)")
    if not 0 < self.warmup_from <= 1:
      raise ValueError(f"StableDiffcoder: warmup_from={self.warmup_from} must lie in (0, 1]")

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    start_BxL, noisable_BxL = block_start(batch, self.block), streams.noisable(batch)
    done = jnp.minimum(step / self.warmup, 1) if self.warmup else 1.0
    bound = self.warmup_from + (1 - self.warmup_from) * done
    rate_BxL = jnp.maximum(bound * at(draws["u_time"], start_BxL), 1 / self.block)
    # Of a block without a mask the token with the lowest draw is as likely to be any of them.
    score_BxL = jnp.where(noisable_BxL, -draws["u_mask"], -jnp.inf)
    lowest_BxL = absorbing.highest_in_blocks(score_BxL, start_BxL, jnp.ones_like(start_BxL))
    masked_BxL = ((draws["u_mask"] < rate_BxL) | lowest_BxL) & noisable_BxL
    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_BxL,
      weight_BxL=jnp.where(step < self.warmup, 1, 1 / rate_BxL),
      level_BxL=rate_BxL,
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    return self.beside_clean(noisy, batch)

  def not_a_likelihood(self) -> str | None:
    return "it masks more tokens than its rates say, and draws no rate below 1 / block"
