"""Cross-entropy and its gradient over vocabulary tiles: no [R, V] array exists. Any XLA backend.

The backward pass computes each tile's logits again: one matmul more, where storing them would need
[R, V]. A vocabulary of one tile pays nothing for it, because XLA finds the two matmuls equal.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary
from kernels_pallas.linear_xent.gradient import cross_entropy
from kernels_pallas.vocabulary import Held

Array = jax.Array


def linear_xent(
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
  *,
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tile: int | None = None,
) -> Array:
  """See `kernels_pallas.linear_xent.linear_xent`. `tile`: ids at a time (None: see `tile_size`)."""
  return cross_entropy(_Passes(forbidden, soft_cap, tile), hidden_RxD, unembed_VxD, target_R)


@dataclasses.dataclass(frozen=True)
class _Passes:
  """See `gradient.Passes`."""

  forbidden: tuple[int, ...]
  soft_cap: float | None
  tile: int | None

  def forward(
    self, hidden_RxD: Array, unembed_VxD: Array, target_R: Array, held: Held
  ) -> tuple[Array, Array]:
    def add(state: tuple[Array, Array], part: vocabulary.Tile) -> tuple[Array, Array]:
      z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, self.soft_cap)
      z_RxT = jnp.where(part.live_T[None, :], z_RxT, -jnp.inf)
      inside_R, target_z_R = vocabulary.at_id(z_RxT, target_R - held.first, part.start)
      target_z_R = jnp.where(inside_R, target_z_R, -jnp.inf)
      return _merge(state, (jax.nn.logsumexp(z_RxT, axis=1), target_z_R))

    lowest_R = jnp.full_like(hidden_RxD[:, 0], -jnp.inf, dtype=jnp.float32)
    own = self._sweep(add, (lowest_R, lowest_R), hidden_RxD, unembed_VxD, held)
    return vocabulary.of_all(_merge, own, held)

  def backward(
    self,
    hidden_RxD: Array,
    unembed_VxD: Array,
    target_R: Array,
    lse_R: Array,
    grad_R: Array,
    held: Held,
    dtypes: tuple[jnp.dtype, jnp.dtype],
  ) -> tuple[Array, Array]:
    hidden_dtype, unembed_dtype = dtypes
    used_Rx1 = (grad_R != 0)[:, None]

    def add(state: tuple[Array, Array], part: vocabulary.Tile) -> tuple[Array, Array]:
      z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, self.soft_cap)
      p_RxT = jnp.exp(z_RxT - lse_R[:, None])
      target_RxT = target_R[:, None] == part.ids_T[None, :]
      d_z_RxT = grad_R[:, None] * (p_RxT - target_RxT)
      if self.soft_cap is not None:
        d_z_RxT *= 1 - jnp.square(z_RxT / self.soft_cap)
      d_z_RxT = jnp.where(used_Rx1 & part.live_T[None, :], d_z_RxT, 0)
      return vocabulary.add_gradients(state, d_z_RxT, hidden_RxD, part.unembed_TxD, part.start)

    nothing = vocabulary.no_gradients(hidden_RxD, unembed_VxD, unembed_dtype)
    d_hidden_RxD, d_unembed_VxD = self._sweep(add, nothing, hidden_RxD, unembed_VxD, held)
    return d_hidden_RxD.astype(hidden_dtype), d_unembed_VxD

  def _sweep(self, add, state, hidden_RxD: Array, unembed_VxD: Array, held: Held):
    tile = vocabulary.tile_size(hidden_RxD, unembed_VxD, self.tile)
    return vocabulary.sweep(
      add, state, unembed_VxD, tile=tile, forbidden=self.forbidden, first=held.first
    )


def _merge(old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
  """The logsumexp of both parts, and the target's logit of that which has it."""
  (old_lse_R, old_z_R), (lse_R, z_R) = old, new
  return jnp.logaddexp(old_lse_R, lse_R), jnp.where(z_R == -jnp.inf, old_z_R, z_R)
