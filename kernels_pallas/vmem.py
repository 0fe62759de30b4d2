"""TPU kernels that multiply hidden rows by the unembedding: tiles of what sizes fit into VMEM."""

from collections.abc import Callable
from typing import Any

import jax

# A core has 64 MiB (v5p) or 128 MiB (v5e, v6e). Tiles are chosen by an estimate, so a part is left
# to what the compiler adds.
LIMIT_BYTES = 64 << 20
_BUDGET_BYTES = 40 << 20
_ROWS = (1024, 512, 256, 128)
_IDS = (1024, 512, 256)
_LANES = 128


def tile_sizes(rows: int, vocab: int, nbytes: Callable[[int, int], int]) -> tuple[int, int]:
  """Rows and ids a tile: the most rows that fit, for the unembedding is read once a tile of rows.

  A thousand rows make a matmul that is slower than reading its tile of the unembedding. With fewer
  rows in all the pass is bound by that reading, which 1024 ids (megabytes) at a time keep busy.

  Args:
    nbytes: what a kernel needs in VMEM for that many rows and ids.

  Raises:
    NotImplementedError: not even the smallest tile fits.
  """
  for most_rows in _ROWS:
    tile_rows = _even(rows, most_rows)
    for most_ids in _IDS:
      tile_ids = min(most_ids, vocab)
      if nbytes(tile_rows, tile_ids) <= _BUDGET_BYTES:
        return tile_rows, tile_ids
  raise NotImplementedError(
    f"tiles of {tile_rows} rows and {tile_ids} ids need {nbytes(tile_rows, tile_ids)} bytes of "
    f"VMEM, more than {_BUDGET_BYTES}"
  )


def columns(rows: int, count: int) -> int:
  """Bytes of `count` buffered [rows, 1] blocks of 32-bit numbers: one fills a lane of 128."""
  return 2 * count * rows * _LANES * 4


def load(refs: Any) -> Any:
  """What a tree of blocks holds."""
  return jax.tree.map(lambda ref: ref[...], refs)


def store(refs: Any, values: Any) -> None:
  for ref, value in zip(jax.tree.leaves(refs), jax.tree.leaves(values), strict=True):
    ref[...] = value


def _even(rows: int, most: int) -> int:
  """Rows a tile, of the fewest tiles: all of them, or a multiple of 128, as any layout allows."""
  if rows <= most:
    return rows
  tiles = -(-rows // most)
  return -(-rows // (tiles * _LANES)) * _LANES
