"""Cross-entropy and its gradient over vocabulary tiles: no [R, V] array exists. Any XLA backend.

The backward pass computes each tile's logits again: one matmul more, where storing them would need
[R, V]. A vocabulary of one tile pays nothing for it, because XLA finds the two matmuls equal.
"""

import functools

import jax
import jax.numpy as jnp

from kernels_pallas import vocabulary

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
  rows, vocab = hidden_RxD.shape[0], unembed_VxD.shape[0]
  tile = min(tile or vocabulary.tile_size(rows, vocab), vocab)
  return _linear_xent(forbidden, soft_cap, tile, hidden_RxD, unembed_VxD, target_R)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _linear_xent(
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tile: int,
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
) -> Array:
  return _forward(forbidden, soft_cap, tile, hidden_RxD, unembed_VxD, target_R)[0]


def _forward(
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tile: int,
  hidden_RxD: Array,
  unembed_VxD: Array,
  target_R: Array,
) -> tuple[Array, tuple[Array, ...]]:
  def add(state: tuple[Array, Array], part: vocabulary.Tile) -> tuple[Array, Array]:
    lse_R, target_z_R = state
    z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, soft_cap)
    z_RxT = jnp.where(part.live_T[None, :], z_RxT, -jnp.inf)
    inside_R, tile_z_R = vocabulary.at_id(z_RxT, target_R, part.start)
    target_z_R = jnp.where(inside_R & (tile_z_R != -jnp.inf), tile_z_R, target_z_R)
    return jnp.logaddexp(lse_R, jax.nn.logsumexp(z_RxT, axis=1)), target_z_R

  lowest_R = jnp.full_like(hidden_RxD[:, 0], -jnp.inf, dtype=jnp.float32)
  lse_R, target_z_R = vocabulary.sweep(
    add, (lowest_R, lowest_R), unembed_VxD, tile=tile, forbidden=forbidden
  )
  return lse_R - target_z_R, (hidden_RxD, unembed_VxD, target_R, lse_R)


def _backward(
  forbidden: tuple[int, ...],
  soft_cap: float | None,
  tile: int,
  saved: tuple[Array, ...],
  grad_R: Array,
) -> tuple[Array, Array, None]:
  hidden_RxD, unembed_VxD, target_R, lse_R = saved
  # A row of weight 0 may hold anything, NaN too, and 0 * NaN would spread to every gradient.
  used_Rx1 = (grad_R != 0)[:, None]
  hidden_RxD = jnp.where(used_Rx1, hidden_RxD, 0)

  def add(state: tuple[Array, Array], part: vocabulary.Tile) -> tuple[Array, Array]:
    d_hidden_RxD, d_unembed_VxD = state
    z_RxT = vocabulary.logits(hidden_RxD, part.unembed_TxD, soft_cap)
    p_RxT = jnp.exp(z_RxT - lse_R[:, None])
    target_RxT = target_R[:, None] == part.ids_T[None, :]
    d_z_RxT = grad_R[:, None] * (p_RxT - target_RxT)
    if soft_cap is not None:
      d_z_RxT *= 1 - jnp.square(z_RxT / soft_cap)
    d_z_RxT = jnp.where(used_Rx1 & part.live_T[None, :], d_z_RxT, 0)
    d_hidden_RxD += d_z_RxT @ part.unembed_TxD.astype(jnp.float32)
    d_tile_TxD = (d_z_RxT.T @ hidden_RxD.astype(jnp.float32)).astype(unembed_VxD.dtype)
    # Ids that a clamped last tile meets again are not live there and add 0.
    old_TxD = jax.lax.dynamic_slice_in_dim(d_unembed_VxD, part.start, tile)
    return d_hidden_RxD, jax.lax.dynamic_update_slice_in_dim(
      d_unembed_VxD, old_TxD + d_tile_TxD, part.start, 0
    )

  nothing = (jnp.zeros_like(hidden_RxD, dtype=jnp.float32), jnp.zeros_like(unembed_VxD))
  d_hidden_RxD, d_unembed_VxD = vocabulary.sweep(
    add, nothing, unembed_VxD, tile=tile, forbidden=forbidden
  )
  return d_hidden_RxD.astype(hidden_RxD.dtype), d_unembed_VxD, None


_linear_xent.defvjp(_forward, _backward)
