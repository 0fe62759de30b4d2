"""One matmul for each group of rows, for CPUs: a loop over the experts that have rows.

XLA's `ragged_dot` makes, on a CPU, every expert multiply all rows. Here an expert's kernel is taken
from the stack once, in float32, and multiplies its own rows, some at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlm.types import Array

# Rows a product, at the most: an expert's fair share, within these. Measured on 2 cores of an
# AMD EPYC (64 experts of 2048 x 512, 4 to 64 rows each): thinner products are slow, thicker ones
# are mostly of rows that are other experts'.
TILE_MIN, TILE_MAX = 8, 32


@jax.custom_vjp
def grouped_product(x_PxI: Array, kernel_ExIxO: Array, load_E: Array) -> Array:
  """`jax.lax.ragged_dot`: rows in the order of their experts -> [P, O]; sums are in float32.

  What is returned for rows behind the last expert's is of no meaning.

  Args:
    load_E: int32, rows of each expert.
  """
  tile = _tile(len(x_PxI), len(load_E))
  x_QxI = _padded(x_PxI, tile)

  def of_expert(expert: Array, starts: Callable, count: Array, y_QxO: Array) -> Array:
    kernel_IxO = _of_stack(kernel_ExIxO, expert)

    def of_tile(i: Array, y_QxO: Array) -> Array:
      # A tile may end in rows of later experts: these come after, and write the right values.
      y_TxO = jax.lax.dynamic_slice_in_dim(x_QxI, starts(i), tile) @ kernel_IxO
      return jax.lax.dynamic_update_slice_in_dim(y_QxO, y_TxO.astype(y_QxO.dtype), starts(i), 0)

    return jax.lax.fori_loop(0, count, of_tile, y_QxO)

  y_QxO = jnp.zeros((len(x_QxI), kernel_ExIxO.shape[2]), x_PxI.dtype)
  return _over_experts(of_expert, load_E, tile, y_QxO)[: len(x_PxI)]


def _forward(x_PxI: Array, kernel_ExIxO: Array, load_E: Array) -> tuple[Array, tuple]:
  return grouped_product(x_PxI, kernel_ExIxO, load_E), (x_PxI, kernel_ExIxO, load_E)


def _backward(kept: tuple, dy_PxO: Array) -> tuple[Array, Array, None]:
  x_PxI, kernel_ExIxO, load_E = kept
  dx_PxI = grouped_product(dy_PxO, kernel_ExIxO.mT, load_E)
  tile = _tile(len(x_PxI), len(load_E))
  x_QxI, dy_QxO = _padded(x_PxI, tile), _padded(dy_PxO, tile)
  ends_E = jnp.cumsum(load_E)

  def of_expert(expert: Array, starts: Callable, count: Array, dkernel_ExIxO: Array) -> Array:
    def of_tile(i: Array, dkernel_IxO: Array) -> Array:
      own_T = starts(i) + jnp.arange(tile) < ends_E[expert]
      x_TxI = jax.lax.dynamic_slice_in_dim(x_QxI, starts(i), tile)
      dy_TxO = jax.lax.dynamic_slice_in_dim(dy_QxO, starts(i), tile)
      return dkernel_IxO + jnp.where(own_T[:, None], x_TxI, 0).T @ jnp.where(
        own_T[:, None], dy_TxO, 0
      )

    zeros_IxO = jnp.zeros(dkernel_ExIxO.shape[1:], jnp.float32)
    dkernel_IxO = jax.lax.fori_loop(0, count, of_tile, zeros_IxO).astype(dkernel_ExIxO.dtype)
    return dkernel_ExIxO.at[expert].set(dkernel_IxO)

  return dx_PxI, _over_experts(of_expert, load_E, tile, jnp.zeros_like(kernel_ExIxO)), None


grouped_product.defvjp(_forward, _backward)


def _tile(rows: int, experts: int) -> int:
  """A power of two."""
  share = max(rows // experts, 1)
  return min(max(1 << (share - 1).bit_length(), TILE_MIN), TILE_MAX)


def _padded(x_PxI: Array, tile: int) -> Array:
  """In float32, with room for a tile that begins at the last row."""
  return jnp.pad(x_PxI.astype(jnp.float32), ((0, tile), (0, 0)))


def _of_stack(kernel_ExIxO: Array, expert: Array) -> Array:
  """One kernel in float32. Taken as whole numbers: a slice of bfloat16 in a loop would have XLA's
  CPU backend widen the whole stack before it."""
  if kernel_ExIxO.dtype != jnp.bfloat16:
    return kernel_ExIxO[expert].astype(jnp.float32)
  word_IxO = jax.lax.bitcast_convert_type(kernel_ExIxO, jnp.uint16)[expert].astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(word_IxO << 16, jnp.float32)


def _over_experts(of_expert: Callable, load_E: Array, tile: int, state: Array) -> Array:
  """Folds `of_expert(expert, starts of tiles, count of tiles, state)` over those that have rows."""
  first_E = jnp.cumsum(load_E) - load_E
  used_E = jnp.argsort(load_E == 0, stable=True)

  def at(i: Array, state: Array) -> Array:
    expert = used_E[i]
    return of_expert(
      expert, lambda j: first_E[expert] + j * tile, -(-load_E[expert] // tile), state
    )

  return jax.lax.fori_loop(0, (load_E > 0).sum(), at, state)
