"""Any-order likelihood with an exact number of masked tokens. LLaDA, arXiv 2502.09992, Eq. 6."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.diffusion import absorbing, times
from dlm.objectives import streams
from dlm.objectives.objective import Objective
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class ExactCount(Objective):
  """LLaDA (2502.09992, Eq. 6): mask exactly k of a row's n tokens, k uniform on 1..n, weight n/k.

  The same bound as masking each token by itself, with less variance: the default of
  `evaluation.likelihood`. With a block, k is drawn for each block, given the clean ones before.

  Args:
    mask_id: id of [MASK]; it gets no probability.
    block: slots in a block, as in `Bd3lm`; None: the row.
    times: how k is spread over the rows and blocks of a batch, as times in `Mdlm`.
  """

  mask_id: int
  block: int | None = None
  times: str = "stratified"
  shiftable = True
  annealable = True
  exact_count = True

  def __post_init__(self):
    streams.check_mask_id("ExactCount", self.mask_id)
    times.check("ExactCount", self.times)
    if self.block is not None and self.block < 1:
      raise ValueError(f"ExactCount: block={self.block} must be at least 1 (None: the row)")

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_time", "stratum" [B * blocks] and "u_mask" [B, L]."""
    key_time, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    blocks = rows * streams.blocks_of(length, self.block or length)
    return times.draw(key_time, blocks) | {"u_mask": jax.random.uniform(key_mask, (rows, length))}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    del step
    rows, length = batch.tokens_BxL.shape
    block = self.block or length
    blocks = rows * streams.blocks_of(length, block)
    noisable_GxD = streams.noisable(batch).reshape(blocks, block)
    n_G = noisable_GxD.sum(-1)
    t_G = times.TIMES[self.times](draws["u_time"], draws["stratum"])
    k_G = jnp.minimum(jnp.floor(t_G * n_G).astype(jnp.int32) + 1, n_G)
    masked_GxD = absorbing.lowest(draws["u_mask"].reshape(blocks, block), noisable_GxD, k_G)

    def per_slot(x_G: Array) -> Array:
      return jnp.repeat(x_G.reshape(rows, -1), block, axis=1)

    noisy = streams.one_stream(
      batch,
      masked_BxL=masked_GxD.reshape(rows, length),
      weight_BxL=per_slot(n_G / jnp.maximum(k_G, 1)),
      level_BxL=per_slot(k_G / jnp.maximum(n_G, 1)),
      count_B=n_G.reshape(rows, -1).sum(-1),
      mask_id=self.mask_id,
    )
    if block == length:
      return noisy
    return streams.noisy_and_clean(noisy, masks.noisy_clean(rows, length, block))

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def not_a_likelihood(self) -> str | None:
    return None
