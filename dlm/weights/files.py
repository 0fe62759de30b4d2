"""Safetensors files that nobody vouches for: checked whole, then read piece by piece.

Headers are judged here, before the `safetensors` package or any allocation sees them, so that an
error names the file, the tensor and the rule, and so that no header can make us allocate more than
a small multiple of its own length.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dlm.files import regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

BYTES = {  # of an element, by the format's names
  "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
  "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
  "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

FLOATS8 = {
  "F8_E4M3": jnp.dtype("float8_e4m3fn"),
  "F8_E5M2": jnp.dtype("float8_e5m2"),
  "F8_E8M0": jnp.dtype("float8_e8m0fnu"),
}

# 150 thousand tensors' worth; LLaDA2-flash has 25 thousand. Parsed, JSON may take 30 times as much.
LONGEST_JSON = 16 * 2**20
MOST_AXES = 8

# A mapped file's pages count as this process's memory until it is closed.
MAPPED = 8 * 2**20


class WeightsError(ValueError):
  """A directory that cannot be what it says it is: the user's to mend, in one message."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor as a header describes it."""

  file: pathlib.Path
  dtype: str  # one of BYTES
  shape: tuple[int, ...]
  offset: int  # of its first byte in the file


def nbytes(stored: Stored) -> int:
  return math.prod(stored.shape) * BYTES[stored.dtype]


# ---------------------------------------------------------------------------------------------
# JSON and headers


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object from a file of at most LONGEST_JSON bytes, without duplicate keys."""
  try:
    size = regular_file(path).stat().st_size
    if size > LONGEST_JSON:
      raise WeightsError(f"{path}: {size} bytes, more than the {LONGEST_JSON} we read")
    return _parse(path.read_bytes(), path)
  except OSError as error:
    raise WeightsError(f"{path} cannot be read: {error.strerror}") from error


def regular_file(path: pathlib.Path) -> pathlib.Path:
  """The path; WeightsError where no regular file is there."""
  try:
    return regular(path)
  except ValueError as error:
    raise WeightsError(str(error)) from error


def _parse(text: bytes, path: pathlib.Path) -> dict[str, Any]:
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      seen: set[str] = set()
      twice = next(key for key, _ in pairs if key in seen or seen.add(key))
      raise WeightsError(f"{path}: key {twice!r} stands there twice")
    return found

  try:
    value = json.loads(text.decode(), object_pairs_hook=unique)
  except WeightsError:
    raise
  except (ValueError, RecursionError) as error:
    raise WeightsError(f"{path} holds no valid JSON: {error}") from error
  if not isinstance(value, dict):
    raise WeightsError(f"{path} holds a JSON {type(value).__name__}, not an object")
  return value


def read_header(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one safetensors file, by name.

  Raises:
    WeightsError: the file or its header is truncated or oversized, an entry is not what the format
      says, or the entries do not tile the data exactly.
  """
  try:
    with regular_file(path).open("rb") as file:
      size = os.fstat(file.fileno()).st_size
      if size < 8:
        raise WeightsError(f"{path} is truncated: {size} bytes hold no header")
      (length,) = struct.unpack("<Q", file.read(8))
      if length > size - 8:
        raise WeightsError(f"{path}: a header of {length} bytes in a file of {size}")
      if length > LONGEST_JSON:
        raise WeightsError(f"{path}: a header of {length} bytes, more than the {LONGEST_JSON} read")
      entries = _parse(file.read(length), path)
  except OSError as error:
    raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
  entries.pop("__metadata__", None)
  spans = {name: _span(path, name, entry) for name, entry in entries.items()}
  _check_tiling(path, spans, size - 8 - length)
  return {
    name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + spans[name][0])
    for name, entry in entries.items()
  }


def _span(path: pathlib.Path, name: str, entry: Any) -> tuple[int, int]:
  """Begin and end of the tensor's data, which its dtype and shape must fill."""

  def sizes(value: Any, most: int) -> bool:
    is_short = isinstance(value, list) and len(value) <= most
    return is_short and all(type(x) is int and x >= 0 for x in value)

  if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
    raise WeightsError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets alone")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in BYTES:
    known = ", ".join(BYTES)
    raise WeightsError(f"{path}: tensor {name!r} has dtype {dtype!r:.40}; known: {known}")
  if not sizes(shape, MOST_AXES):
    raise WeightsError(f"{path}: tensor {name!r} has shape {str(shape)[:80]}, not up to 8 sizes")
  if not sizes(offsets, 2) or len(offsets) < 2:
    raise WeightsError(f"{path}: tensor {name!r} has data_offsets {str(offsets)[:80]}")
  begin, end = offsets
  if end - begin != math.prod(shape) * BYTES[dtype]:
    raise WeightsError(f"{path}: tensor {name!r}, {dtype} {shape}, does not fill {offsets}")
  return begin, end


def _check_tiling(
  path: pathlib.Path, spans: Mapping[str, tuple[int, int]], data_bytes: int
) -> None:
  at = 0
  for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
    if begin != at:
      raise WeightsError(f"{path}: data of {name!r} begins at {begin}, the one before ends at {at}")
    at = end
  if at > data_bytes:
    raise WeightsError(f"{path} is truncated: its tensors take {at} bytes, it holds {data_bytes}")
  if at < data_bytes:
    raise WeightsError(f"{path}: {data_bytes - at} bytes follow the last tensor")


# ---------------------------------------------------------------------------------------------
# The directory


def tensors(directory: pathlib.Path) -> dict[str, Stored]:
  """All tensors of a directory: of one file, or of the shards that its index names.

  Raises:
    WeightsError: no safetensors, a missing or damaged shard, an index that points elsewhere or that
      disagrees with its shards.
  """
  if (directory / SINGLE).exists():
    return read_header(directory / SINGLE)
  if not (directory / INDEX).exists():
    raise WeightsError(f"{directory} holds neither {SINGLE} nor {INDEX}; nothing else is read")
  where = read_json(directory / INDEX).get("weight_map")
  if not isinstance(where, dict) or not where:
    raise WeightsError(f"{directory / INDEX} has no weight_map")
  for name, shard in where.items():
    # Shards may be symbolic links, as in the hub's cache; a path may not lead out of the directory.
    if not isinstance(shard, str) or shard in ("", ".", "..") or {"/", "\\", "\0"} & set(shard):
      raise WeightsError(f"{directory / INDEX}: {name!r} lies in {shard!r}, no file name")
  shards = sorted(set(where.values()))
  missing = [shard for shard in shards if not (directory / shard).exists()]
  if missing:
    raise WeightsError(
      f"{directory} lacks {len(missing)} of {len(shards)} shards: {listed(missing, ', ')}"
    )
  found: dict[str, Stored] = {}
  for shard in shards:
    for name, stored in read_header(directory / shard).items():
      if name in found:
        raise WeightsError(f"tensor {name!r} lies in {found[name].file} and in {stored.file}")
      found[name] = stored
  wrong = [f"- {n}, in {s}" for n, s in where.items() if n not in found or found[n].file.name != s]
  wrong += [f"+ {n}, in {s.file.name}" for n, s in found.items() if n not in where]
  if wrong:
    raise WeightsError(
      f"{directory}: index (-) and shards (+) disagree on {len(wrong)} tensors:\n{listed(wrong)}"
    )
  return found


def listed(lines: list[str], separator: str = "\n") -> str:
  """The first 20 lines, and how many more there are."""
  more = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
  return separator.join(lines[:20] + more)


class Reader:
  """Pieces of tensors, copied out of mapped files. Use it in a `with`."""

  def __init__(self) -> None:
    self._path: pathlib.Path | None = None
    self._file: Any = None
    self._mapped = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self._close()

  def _close(self) -> None:
    if self._file is not None:
      self._file.__exit__(None, None, None)
    self._path, self._file, self._mapped = None, None, 0

  def read(self, name: str, stored: Stored, where: tuple[slice, ...]) -> np.ndarray:
    """The piece `where` of a tensor; every slice has a start and a stop."""
    if stored.dtype in FLOATS8:  # which the package has no numpy type for
      return _rows(name, stored, where[0])[(slice(None), *where[1:])]
    try:
      if self._path != stored.file or self._mapped > MAPPED:
        self._close()
        self._path, self._file = stored.file, safe_open(stored.file, framework="np")
      # Pages of whole rows are touched, whichever columns are read.
      rows = (where[0].stop - where[0].start) / max(stored.shape[0], 1)
      self._mapped += int(rows * nbytes(stored))
      return self._file.get_slice(name)[where]
    except (SafetensorError, OSError) as error:
      raise WeightsError(f"{stored.file} cannot be read: {error}") from error


def _rows(name: str, stored: Stored, rows: slice) -> np.ndarray:
  """Whole rows of a tensor of 8-bit floats."""
  row = math.prod(stored.shape[1:])
  try:
    with stored.file.open("rb") as file:
      file.seek(stored.offset + rows.start * row)
      content = file.read((rows.stop - rows.start) * row)
  except OSError as error:
    raise WeightsError(f"{stored.file} cannot be read: {error.strerror}") from error
  if len(content) < (rows.stop - rows.start) * row:
    raise WeightsError(f"{stored.file} is truncated: it ends within tensor {name!r}")
  return np.frombuffer(content, FLOATS8[stored.dtype]).reshape(-1, *stored.shape[1:])
