"""Ops on a mesh of several devices: XLA cannot partition a kernel, so an op splits itself.

Which devices there are is told by the mesh that is set: by `jax.set_mesh`, or for what it runs by
`dlm.parallel.over_batch`. Rows are split over the axes that split a batch, the positions of a row
over "sequence", the vocabulary and the heads over "tensor". No mesh, axes of one device and axes
that are manual already: nothing is split.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

Array = jax.Array

BATCH = ("data", "fsdp", "expert")
SEQUENCE = "sequence"
TENSOR = "tensor"


class Axes(NamedTuple):
  """Of the mesh that is set, those of several devices; empty and None: there are none."""

  batch: tuple[str, ...]
  sequence: str | None
  tensor: str | None

  @property
  def rows(self) -> tuple[str, ...]:
    """What positions of a batch are split over, where each is a row of its own."""
    return self.batch if self.sequence is None else (*self.batch, self.sequence)


def axes() -> Axes:
  mesh = jax.sharding.get_abstract_mesh()
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  free = {name for name, size in mesh.shape.items() if size > 1 and kinds[name] == AxisType.Auto}

  def if_free(name: str) -> str | None:
    return name if name in free else None

  return Axes(tuple(name for name in BATCH if name in free), if_free(SEQUENCE), if_free(TENSOR))


def run(fn: Callable[..., Any], split_in: Any, split_out: Any, *args: Any) -> Any:
  """Runs `fn` on each device's part of the arguments; `fn` itself sums over devices.

  Args:
    split_in, split_out: trees of what each axis of an array is split by, as a string: "b" batch,
      "s" sequence, "r" both (see `folded`), "t" tensor, "." none; "b.t." is [rows, all, heads,
      all], and axes that are not named are whole. One string may stand for a whole tree.
  """
  own = axes()
  if not own.rows and own.tensor is None:
    return fn(*args)

  def specs(split: Any) -> Any:
    return jax.tree.map(lambda letters: _spec(own, letters), split)

  return jax.shard_map(fn, in_specs=specs(split_in), out_specs=specs(split_out), check_vma=False)(
    *args
  )


def positions(length: int) -> int:
  """Over how many devices a row of so many positions is split; one alone is split over none.

  ValueError where they do not divide.
  """
  own = axes().sequence
  count = 1 if own is None or length == 1 else _size(own)
  if length % count:
    raise ValueError(f"{length} positions of a row must divide by mesh.sequence={count}")
  return count


def split_rows(x_BxWxD: Array) -> Array:
  """Keeps to each device its positions of its rows, where rows are split at all: XLA might not."""
  if positions(x_BxWxD.shape[1]) == 1:
    return x_BxWxD
  # A lookup in a table whose width is split gives all rows of a share of the width. Brought over by
  # one axis at a time they travel once; both at once XLA would send everything everywhere.
  x_BxWxD = jax.lax.with_sharding_constraint(x_BxWxD, PartitionSpec(None, SEQUENCE, "fsdp"))
  return jax.lax.with_sharding_constraint(x_BxWxD, _spec(axes(), "bs"))


def folded(x_BxW: Array, leading: int = 2) -> Array:
  """[B, W, ...] as rows [B * W, ...], in an order in which each device keeps the rows it has.

  That is the plain one where a row is whole. `unfolded` is the inverse; arrays whose rows belong
  together need equal B and W.

  Args:
    leading: axes to fold; rows whose positions are split have two of them.
  """
  lead, rest = x_BxW.shape[:leading], x_BxW.shape[leading:]
  if leading == 2 and (parts := positions(lead[1])) > 1:
    own, (batch, length) = _size(*axes().batch), lead
    x_BxW = x_BxW.reshape(own, batch // own, parts, length // parts, *rest).swapaxes(1, 2)
  return x_BxW.reshape(math.prod(lead), *rest)


def unfolded(x_R: Array, lead: tuple[int, ...]) -> Array:
  """The array [B, W, ...], whose shape begins with `lead`, of the rows that `folded` made of it."""
  rest = x_R.shape[1:]
  if len(lead) == 2 and (parts := positions(lead[1])) > 1:
    own, (batch, length) = _size(*axes().batch), lead
    x_R = x_R.reshape(own, parts, batch // own, length // parts, *rest).swapaxes(1, 2)
  return x_R.reshape(*lead, *rest)


def dealt(length: int) -> Array | None:
  """An order of a row's positions: of each device a piece from the front and one from the end.

  Where a position sees what is before it, as in blocks or [noisy; clean], all then have as much to
  do. None: the row is whole, or has no two equal pieces for each device and stays in order.
  """
  parts = positions(length)
  if parts == 1 or length % (2 * parts):
    return None
  piece_PxW = jnp.arange(length).reshape(2 * parts, -1)
  return jnp.stack([piece_PxW[:parts], piece_PxW[: parts - 1 : -1]], axis=1).ravel()


def collected(x_BxWxD: Array) -> Array:
  """What is in the order of `dealt`, in that of the row again."""
  parts = positions(x_BxWxD.shape[1])
  # Of its two pieces a device has an even one and an odd one: those come first and second.
  even = [(i, (i if i % 2 == 0 else 2 * parts - 1 - i) // 2) for i in range(parts)]
  odd = [(i, (i if i % 2 else 2 * parts - 1 - i) // 2) for i in range(parts)]

  def of_device(x_BxWxD: Array) -> Array:
    front, end = jnp.split(x_BxWxD, 2, axis=1)
    is_even = jax.lax.axis_index(SEQUENCE) % 2 == 0
    first = jax.lax.ppermute(jnp.where(is_even, front, end), SEQUENCE, even)
    second = jax.lax.ppermute(jnp.where(is_even, end, front), SEQUENCE, odd)
    return jnp.concatenate([first, second], axis=1)

  return run(of_device, ("bs",), "bs", x_BxWxD)


def _size(*names: str) -> int:
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[name] for name in names)


def _spec(own: Axes, letters: str) -> PartitionSpec:
  names = {"b": own.batch or None, "s": own.sequence, "r": own.rows or None, "t": own.tensor}
  return PartitionSpec(*(names.get(letter) for letter in letters))
