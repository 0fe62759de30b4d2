"""Ops on a mesh of several devices: XLA cannot partition a kernel, so an op splits itself.

Which devices there are is told by the mesh that is set: by `jax.set_mesh`, or for what it runs by
`dlm.parallel.over_batch`. Rows are split over the axes that split a batch, the vocabulary and the
heads over "tensor". No mesh, axes of one device and axes that are manual already: nothing is split.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH = ("data", "fsdp", "expert")
TENSOR = "tensor"


def axes() -> tuple[tuple[str, ...], str | None]:
  """The axes to split rows over, and the one for ids or heads; empty and None: there are none."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  free = {name for name, size in mesh.shape.items() if size > 1 and kinds[name] == AxisType.Auto}
  return tuple(name for name in BATCH if name in free), TENSOR if TENSOR in free else None


def run(fn: Callable[..., Any], split_in: Any, split_out: Any, *args: Any) -> Any:
  """Runs `fn` on each device's part of the arguments; `fn` itself sums over devices.

  Args:
    split_in, split_out: trees of what each axis of an array is split by, as a string: "b" batch,
      "t" tensor, "." neither; "b.t." is [rows, all, heads, all], and axes that are not named are
      whole. One string may stand for a whole tree.
  """
  batch, tensor = axes()
  if not batch and tensor is None:
    return fn(*args)
  names = {"b": batch or None, "t": tensor, ".": None}

  def spec(letters: str) -> PartitionSpec:
    return PartitionSpec(*(names[letter] for letter in letters))

  in_specs, out_specs = jax.tree.map(spec, (split_in, split_out))
  return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)
