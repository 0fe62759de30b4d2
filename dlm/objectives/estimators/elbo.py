"""Evidence lower bounds by counts of masked tokens: VRPO's and ESPO's."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.estimators.estimator import Estimator, answer, one_stream
from dlm.types import Array, Batch, Noisy


@dataclasses.dataclass(frozen=True)
class _Counted(Estimator):
  """Masks of a drawn number of tokens each.

  Args:
    draws: numbers of masked tokens that are drawn for a row.
  """

  draws: int

  def __post_init__(self):
    if self.draws < 1:
      raise ValueError(f"{type(self).__name__}: draws={self.draws} must be at least 1")


@dataclasses.dataclass(frozen=True)
class CountedElbo(_Counted):
  """VRPO (LLaDA 1.5, 2505.19223): the mean of (n / k) log p of k masked tokens of n, k drawn.

  Unbiased for the bound. Every draw has a number of its own, spread evenly over 1..n, and one mask.
  """

  draws: int = 8

  @property
  def forwards(self) -> int:
    return self.draws

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_count" [B] and "u_mask" [B, draws, L]."""
    key_count, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    return {
      "u_count": jax.random.uniform(key_count, (rows,)),
      "u_mask": jax.random.uniform(key_mask, (rows, self.draws, length)),
    }

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    learned_BxL = streams.noisable(batch)
    n_Bx1 = learned_BxL.sum(-1, keepdims=True)
    step_N = jnp.arange(self.draws) / self.draws
    u_BxN = (draws["u_count"][:, None] + step_N[None]) % 1
    k_BxN = jnp.minimum(jnp.floor(u_BxN * n_Bx1).astype(jnp.int32) + 1, n_Bx1)
    masked_BxNxL = absorbing.lowest(draws["u_mask"], learned_BxL[:, None], k_BxN)
    weight_BxN = n_Bx1 / jnp.maximum(k_BxN, 1) / self.draws
    return one_stream(batch, masked_BxNxL, weight_BxN[:, :, None], mask_id)


@dataclasses.dataclass(frozen=True)
class CoupledElbo(_Counted):
  """ESPO (ML-GSAI/ESPO): log p of k masked of n tokens by (n + 1) / k, and of the n - k others.

  Unbiased for the bound; k runs from 0 to n, so that some forwards hide nothing or all. The rows of
  a batch have their k in even steps. All that was written counts, what stands behind the end, too,
  but in rows of which nothing is learned.

  Args:
    complement: the other tokens are masked in a forward of their own, and the two are averaged.
  """

  draws: int = 2
  complement: bool = True

  @property
  def forwards(self) -> int:
    return 2 * self.draws if self.complement else self.draws

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_count" [draws] and "u_mask" [B, draws, L]."""
    key_count, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    return {
      "u_count": jax.random.uniform(key_count, (self.draws,)),
      "u_mask": jax.random.uniform(key_mask, (rows, self.draws, length)),
    }

  def noisy(self, draws: dict[str, Array], batch: Batch, mask_id: int) -> Noisy:
    answer_BxL = answer(batch)
    some_Bx1 = streams.noisable(batch).any(-1, keepdims=True)
    batch = batch.replace(noisable_BxL=answer_BxL & some_Bx1)
    rows = len(answer_BxL)
    n_Bx1 = answer_BxL.sum(-1, keepdims=True)
    first_BxN = jnp.floor(draws["u_count"][None] * (n_Bx1 + 1))
    step_Bx1 = jnp.arange(rows)[:, None] * (n_Bx1 + 1) / rows
    k_BxN = (jnp.round(first_BxN + step_Bx1) % (n_Bx1 + 1)).astype(jnp.int32)
    masked_BxNxL = absorbing.lowest(draws["u_mask"], answer_BxL[:, None], k_BxN)
    weight_BxN = (n_Bx1 + 1) / jnp.maximum(k_BxN, 1) / self.draws
    if self.complement:
      other_BxNxL = answer_BxL[:, None] & ~masked_BxNxL
      other_BxN = (n_Bx1 + 1) / jnp.maximum(n_Bx1 - k_BxN, 1) / self.draws
      masked_BxNxL = jnp.stack([masked_BxNxL, other_BxNxL], axis=2).reshape(rows, self.forwards, -1)
      weight_BxN = jnp.stack([weight_BxN, other_BxN], axis=2).reshape(rows, -1) / 2
    return one_stream(batch, masked_BxNxL, weight_BxN[:, :, None], mask_id)
