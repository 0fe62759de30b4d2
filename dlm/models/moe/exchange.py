"""Experts on a mesh of several devices: tokens travel to their experts and back, kernels stay.

A device routes the rows it has. Experts are split over "expert", which splits rows too, and their
width over "tensor"; over "fsdp" kernels are gathered. No mesh, axes of one device and axes that are
manual already: nothing is split (`kernels_pallas.shards`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from dlm.types import Array
from kernels_pallas import shards


@dataclasses.dataclass(frozen=True)
class Exchange:
  """The mesh axes at hand. All but `run` is called from within `run`."""

  rows: tuple[str, ...] = ()  # the axes that split rows
  sequence: str | None = None  # and that of their positions
  tensor: str | None = None

  @property
  def expert(self) -> str | None:
    return "expert" if "expert" in self.rows else None

  def run(self, fn: Callable[..., Any], names: Any, params: Any, *rows: Array) -> Any:
    """Runs `fn(params, *rows)` on each device's experts and rows; what it returns leads with rows.

    Where positions are split too, all of it leads with rows and positions.

    What it returns is whole on every device that shares the rows: see `summed`. Gradients are
    taken from outside, and those of parameters are then sums over all rows.

    Args:
      names: of the axes of `params` in `dlm.parallel.RULES`, a PartitionSpec each.
    """
    if self == ALONE:
      return fn(params, *rows)
    axes = {"expert": self.expert, "mlp": self.tensor}
    split = jax.tree.map(lambda each: PartitionSpec(*map(axes.get, each)), names)
    by_row = PartitionSpec(self.rows or None, *([self.sequence] if self.sequence else []))
    return jax.shard_map(
      fn, in_specs=(split, *[by_row] * len(rows)), out_specs=by_row, check_vma=False
    )(params, *rows)

  def to_experts(self, x_ExC: Array) -> Array:
    """Sends tokens: [E, C, ...] of this device's tokens -> [E / n, n C, ...] of its experts.

    Every device has equally many slots for every expert, so all send and receive as much.
    """
    if self.expert is None:
      return x_ExC
    return jax.lax.all_to_all(x_ExC, self.expert, 0, 1, tiled=True)

  def to_tokens(self, x_ExC: Array) -> Array:
    """Sends the results back: the inverse of `to_experts`."""
    if self.expert is None:
      return x_ExC
    return jax.lax.all_to_all(x_ExC, self.expert, 1, 0, tiled=True)

  def devices(self) -> int:
    """n, how many devices exchange."""
    return 1 if self.expert is None else jax.lax.axis_size(self.expert)

  def index(self) -> Array | int:
    """Which of them this is."""
    return 0 if self.expert is None else jax.lax.axis_index(self.expert)

  def largest(self, x: Array) -> Array:
    """Over the devices that exchange: a branch that holds an exchange must be taken by all."""
    return x if self.expert is None else jax.lax.pmax(x, self.expert)

  def gathered(self, x_T: Array) -> Array:
    """[T, ...] of all devices that exchange, one after another."""
    return x_T if self.expert is None else jax.lax.all_gather(x_T, self.expert, tiled=True)

  def scattered(self, y_T: Array) -> Array:
    """The sum over them of what is as long as `gathered`, cut to this device's part."""
    if self.expert is None:
      return y_T
    return jax.lax.psum_scatter(y_T, self.expert, tiled=True)

  def summed(self, y_T: Array) -> Array:
    """Over the parts of the experts' width, for `run` to return: gradients are not exchanged."""
    return y_T if self.tensor is None else _summed(self, y_T)

  def sum_of_equals(self, y_T: Array) -> Array:
    """As `summed`, of what is the same on all that have a part, as gradients of its results are."""
    return y_T if self.tensor is None else jax.lax.axis_size(self.tensor) * y_T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(over: Exchange, y_T: Array) -> Array:
  return jax.lax.psum(y_T, over.tensor)


# What `run` returns is whole on devices that differ in the tensor axis alone, so they get the same
# gradients of it: an n-th each.
_summed.defvjp(
  lambda over, y_T: (_summed(over, y_T), None),
  lambda over, _, dy_T: (over.sum_of_equals(dy_T),),
)


ALONE = Exchange()


def here() -> Exchange:
  """Of the mesh that is set, by `jax.set_mesh` or `dlm.parallel.over_batch`."""
  mesh = shards.axes()
  return Exchange(*mesh)
