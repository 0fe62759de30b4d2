"""Chooses an implementation: the fastest that this machine has, or what is named."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

# The GPU kernels compile for an H100 and agree with the reference in interpret mode, but no GPU has
# run them yet: until `benchmark --suite=kernels` shows there that they win, they must be named.
_ORDER = {
  "cpu": ("xla", "reference"),
  "gpu": ("xla", "reference"),
  "tpu": ("tpu", "xla", "reference"),
}
_ORDER_ELSEWHERE = ("xla", "reference")


def backend() -> str:
  """What the program at hand is compiled for: the platform of the mesh that is set (which may be
  of devices that are not here, see `ahead`), or else jax's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


Names = str | tuple[str, ...] | None  # of an implementation: one, the first that can of some, any


def run(
  op: str, table: Mapping[str, Callable], implementation: Names, *args: Any, **kwargs: Any
) -> Any:
  """Calls `table[implementation](*args, **kwargs)`; None: the first of the backend's that can.

  Of several names the first that can is called, and this op need not have all of them.

  An implementation raises NotImplementedError where it does not serve these arguments or this
  machine (the next is tried) and ValueError where the caller is mistaken (nothing else is tried).

  Raises:
    ValueError: the named implementation is not in the table.
    NotImplementedError: none can; the message holds the reason of each. A named one: its own.
  """
  if isinstance(implementation, str):
    if implementation not in table:
      raise ValueError(f"{op}: {implementation=} is not one of {', '.join(table)}")
    return table[implementation](*args, **kwargs)
  if implementation and not set(implementation) & set(table):
    raise ValueError(f"{op}: {implementation=} has none of {', '.join(table)}")
  reasons = []
  for name in implementation or _ORDER.get(backend(), _ORDER_ELSEWHERE):
    if name not in table:
      continue
    try:
      return table[name](*args, **kwargs)
    except NotImplementedError as error:
      reasons.append(f"{name}: {error}")
  raise NotImplementedError(
    f"{op}: no implementation serves this call on {backend()!r}. " + "; ".join(reasons)
  )
