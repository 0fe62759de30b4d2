"""What the kernels for Hopper share: a ring of tiles in shared memory, and who fills it.

A program walks over the tiles that its table names, two arrays at a time (keys and values, or
queries and gradients). One warpgroup copies them into the ring, as far ahead as that has slots; the
others, the workers, each have 64 rows of their own and multiply them with every tile.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.hopper import SWIZZLED

Array = jax.Array

_RING_BYTES = 160 << 10  # of the 227 KiB that a program may have; the rest holds the workers' rows


def buffer(*shape: int) -> Any:
  """Shared memory for operands of matmuls, bfloat16 [..., rows, H]."""
  return plgpu.SMEM(shape, jnp.bfloat16, transforms=SWIZZLED)


def scratch(tile: int, dim: int, rows: int, workers: int) -> list[Any]:
  """What a `Ring` is made of; beside each tile there are `rows` of 32-bit numbers, [rows, tile]."""
  slots = min(_RING_BYTES // (tile * dim * 2), 8)
  return [
    buffer(slots, tile, dim),
    plgpu.SMEM((slots, rows, tile), jnp.int32),
    plgpu.Barrier(num_arrivals=2, num_barriers=slots),
    plgpu.Barrier(num_arrivals=workers, num_barriers=slots),
  ]


def call(program: Callable[..., None], workers: int, grid: dict[str, int], **how: Any) -> Any:
  """A kernel of `workers` warpgroups and one that copies, for each point of the grid."""
  return plgpu.kernel(
    program,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    num_threads=workers + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup, approx_math=True
    ),
    **how,
  )


def across(x_R: Array, shape: tuple[int, int]) -> Array:
  """A number per row beside each column."""
  return jax.lax.broadcast_in_dim(x_R, shape, (0,))


def down(x_S: Array, shape: tuple[int, int]) -> Array:
  """A number per column beside each row."""
  return jax.lax.broadcast_in_dim(x_S, shape, (1,))


def product(a: Any, b: Any, shape: tuple[int, int]) -> Array:
  """Float32 a @ b; b is in shared memory, a there or in registers."""

  def multiply(sums):
    plgpu.wgmma(sums, a, b)
    return sums[...]

  return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


class Ring:
  """Turn 2 n is the first array's tile of step n, with its rows; turn 2 n + 1 the second's."""

  def __init__(self, refs: Sequence[Any]):
    """`refs`: of what `scratch` says."""
    self._tiles, self._rows, self._filled, self._used = refs
    self._slots = self._tiles.shape[0]

  def _slot(self, turn: Array) -> Array:
    return jax.lax.rem(turn, self._slots)

  def fill(self, steps: Array, sources: Callable[[Array], tuple[Any, Any, Any]]) -> None:
    """For the warpgroup that copies. `sources(step)`: both arrays' tiles and the rows."""

    @pl.loop(0, steps)
    def _step(step):
      *tiles, rows = sources(step)
      for which, tile in enumerate(tiles):
        turn = 2 * step + which
        slot = self._slot(turn)
        pl.when(turn >= self._slots)(functools.partial(plgpu.barrier_wait, self._used.at[slot]))
        plgpu.copy_gmem_to_smem(tile, self._tiles.at[slot], self._filled.at[slot])
        if which == 0:
          plgpu.copy_gmem_to_smem(rows, self._rows.at[slot], self._filled.at[slot])
        else:
          plgpu.barrier_arrive(self._filled.at[slot])

    @pl.loop(jnp.maximum(2 * steps - self._slots, 0), 2 * steps)
    def _drain(turn):
      plgpu.barrier_wait(self._used.at[self._slot(turn)])

  def wait(self, turn: Array) -> Any:
    """A worker's: the tile, once it is there."""
    plgpu.barrier_wait(self._filled.at[self._slot(turn)])
    return self._tiles.at[self._slot(turn)]

  def row(self, turn: Array, index: int) -> Array:
    return self._rows[self._slot(turn), index]

  def free(self, turn: Array) -> None:
    """A worker's: it reads the tile no more. All must say so before it is filled again."""
    plgpu.barrier_arrive(self._used.at[self._slot(turn)])
