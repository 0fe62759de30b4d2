"""Whether all that a server holds fits, before it takes a request."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

RESERVE = 0.05  # of the device, for what nobody counts
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes on the device, and what is left of them for rows.

  Args:
    limit: of the device.
    weights: of the model.
    row: what each row of a canvas size keeps: its canvas, its cache, its policy's state.
    rows: how many there are of each size, on this device.
    pages: of the prefix cache.
    temporaries: the most that one program needs beside its arguments.
  """

  limit: int
  weights: int
  row: Mapping[int, int]
  rows: int
  pages: int
  temporaries: int

  # Beside the rows that decode, one whose prompt is being cached, and one that is about to begin.
  BESIDE = 2

  @property
  def total(self) -> int:
    rows = (self.rows + self.BESIDE) * sum(self.row.values())
    return self.weights + rows + self.pages + self.temporaries

  @property
  def fitting(self) -> int:
    """Rows of each canvas size that would fit."""
    room = int(self.limit * (1 - RESERVE)) - (self.total - self.rows * sum(self.row.values()))
    return max(room // sum(self.row.values()), 0)

  def check(self) -> None:
    """Raises ValueError where it does not fit, and says how many rows would."""
    if self.rows <= self.fitting:
      return
    rows = self.rows * sum(self.row.values())
    raise ValueError(
      f"serving: rows={self.rows} of {', '.join(map(str, self.row))} slots need {rows / GIB:.2f} "
      f"GiB beside weights ({self.weights / GIB:.2f}), prefixes ({self.pages / GIB:.2f}) and "
      f"temporaries ({self.temporaries / GIB:.2f}), of {self.limit / GIB:.2f} GiB less "
      f"{RESERVE:.0%}: {self.fitting} rows would fit"
    )


def device_bytes(device: jax.Device) -> int:
  """What the device has; the machine's memory for a CPU."""
  stats = device.memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def nbytes(tree: Any, device: jax.Device | None = None) -> int:
  """Of arrays, or of their shapes; of what of the arrays is on one device."""

  def each(leaf: Any) -> int:
    if device is not None:
      return sum(part.data.nbytes for part in leaf.addressable_shards if part.device == device)
    width = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return int(np.prod(leaf.shape, dtype=np.int64)) * width

  return sum(map(each, jax.tree.leaves(tree)))
