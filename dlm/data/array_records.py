"""Rows that are ready to train on, in ArrayRecord files that any number of hosts write and read.

    DIR/index.json                         what all shards share, and the rows of each; written last
    DIR/tokenizer/                         loads with `saved:DIR/tokenizer`
    DIR/SPLIT-00003-of-00064.array_record  one row a record, read in any order
    DIR/SPLIT-00003-of-00064.json          what went into it; once it is there the shard is whole

`dlm.data.prepare_rows` writes them. A record is a `record_type`: ids, documents and what is
learned, side by side; ArrayRecord compresses it.
"""

import dataclasses
import functools
import hashlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dlm import files
from dlm.data.install import require
from dlm.data.sources.example import check_split
from dlm.data.tokenizers import Tokenizer

INDEX = "index.json"
VERSION = 1
COUNTS = ("rows", "documents", "tokens", "dropped", "truncated")  # of a shard
FIELDS = {
  "version": int,
  "source": str,
  "tokenizer": str,
  "ids": int,
  "length": int,
  "layout": dict,
  "splits": dict,
}


def record_type(length: int, ids: int) -> np.dtype:
  """Of one row of `length` tokens, whose ids are below `ids`."""
  return np.dtype(
    [
      ("tokens", "<u2" if ids <= 1 << 16 else "<u4", length),
      ("segment", "<u2" if length < 1 << 16 else "<u4", length),
      ("noisable", "u1", -(-length // 8)),  # bits
    ]
  )


def shard_name(split: str, index: int, count: int) -> str:
  return f"{split}-{index:05d}-of-{count:05d}"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRows:
  """The rows of one split. As a part of a mixture it has its layout already."""

  name: str
  records: Any  # array_record's data source: bytes by index
  type: np.dtype
  layout: Mapping[str, Any]  # the fields of `MixturePart` that the rows were laid out by
  report: dict[str, int | str]
  fingerprint: Callable[[], dict[str, str]]
  traced = paired = False
  notes = ()

  def __len__(self) -> int:
    return len(self.records)

  @property
  def length(self) -> int:
    return self.type["tokens"].shape[0]

  def rows(
    self, index_B: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Tokens, where they are noisable, and segments: [B, L] each, of rows in any order; and by
    name what they have besides."""
    found = self.records.__getitems__(index_B.tolist())
    record_B = np.frombuffer(b"".join(found), self.type)
    noisable_BxL = np.unpackbits(record_B["noisable"], axis=1, count=self.length).astype(bool)
    return (
      record_B["tokens"].astype(np.int32),
      noisable_BxL,
      record_B["segment"].astype(np.int32),
      self.extra(record_B),
    )

  def extra(self, record_B: np.ndarray) -> dict[str, np.ndarray]:
    """What rows have besides."""
    del record_B
    return {}


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """How array_record is told what a file holds, so that it opens none before it is read."""

  filename: str
  examples_in_shard: int
  skip: int = 0

  @property
  def take(self) -> int:
    return self.examples_in_shard


def open_array_records(directory: str, split: str, tokenizer: Tokenizer) -> StoredRows:
  """Opens what `write_rows` wrote with an equal tokenizer.

  ValueError: it is not complete, a shard is missing or has another size, or it is of another
  tokenizer.
  """
  root, index, shards, records = opened(
    "arrayrecord",
    directory,
    split,
    tokenizer,
    FIELDS,
    VERSION,
    "experiments/prepare_data.py --length",
  )
  name = f"arrayrecord:{index['source']}"
  totals = {key: sum(shard[key] for shard in shards) for key in COUNTS}
  if not totals["rows"]:
    raise ValueError(f"arrayrecord: {root} has no rows of {split=}")
  return StoredRows(
    name,
    records,
    record_type(index["length"], index["ids"]),
    index["layout"],
    {"name": name, "columns": index["length"] // index["layout"].get("per_row", 1), **totals},
    functools.partial(fingerprint, root),
  )


def fingerprint(root: pathlib.Path) -> dict[str, str]:
  """Of all shards: the index holds a hash of each."""
  return {str(root / INDEX): files.fingerprint(root / INDEX)}


def opened(
  kind: str,
  directory: str,
  split: str,
  tokenizer: Tokenizer,
  fields: Mapping[str, type],
  version: int,
  maker: str,
) -> tuple[pathlib.Path, dict[str, Any], list[dict[str, Any]], Any]:
  """The folder, its index, what that says of the split's shards, and their records by number.

  Args:
    kind: of source, for messages; `maker`: what writes such folders.
    fields, version: of the index.

  Raises:
    ValueError: it is not complete or not what `fields` say, a shard is missing or has another size,
      or it is of another tokenizer.
  """
  check_split(split)
  root = pathlib.Path(directory)
  where = root / INDEX
  if not where.is_file():
    raise ValueError(f"{kind}: {where} is missing: not, or not yet all, written by {maker}")
  index = files.read_json(where)
  for field, of in fields.items():
    if not isinstance(index, dict) or not isinstance(index.get(field), of):
      raise ValueError(f"{kind}: {where}: field {field} must be there, of type {of.__name__}")
  if index["version"] != version:
    raise ValueError(f"{kind}: {where}: version={index['version']} must be {version}")
  if index["tokenizer"] != tokenizer.fingerprint:
    own = root / "tokenizer"
    raise ValueError(
      f"{kind}: {root} was written with tokenizer {index['tokenizer']}, not"
      f" {tokenizer.fingerprint}" + (f"; load its own with saved:{own}" if own.is_dir() else "")
    )
  shards = index["splits"].get(split)
  if not shards:
    raise ValueError(f"{kind}: {root} has no {split=}; has {sorted(index['splits'])}")
  paths = [root / f"{shard_name(split, i, len(shards))}.array_record" for i in range(len(shards))]
  for path, shard in zip(paths, shards, strict=True):
    size = files.regular(path).stat().st_size
    if size != shard["bytes"]:
      raise ValueError(f"{kind}: {path} has {size} bytes, by {where} {shard['bytes']}")
  library = require("array_record.python.array_record_data_source")
  held = [
    _Instruction(str(path), shard["rows"])
    for path, shard in zip(paths, shards, strict=True)
    if shard["rows"]
  ]
  return root, index, shards, library.ArrayRecordDataSource(held)


def fill(path: pathlib.Path, records: Iterable[np.ndarray]) -> dict[str, Any]:
  """Writes a file of records, whole or not at all; its "bytes", and a "hash" of what it holds.

  It is filled on the local disk first: what writes it takes a name, and may seek.
  """
  library, digest = require("array_record.python.array_record_module"), hashlib.blake2b()
  with tempfile.TemporaryDirectory() as local:
    filled = pathlib.Path(local) / path.name
    writer = library.ArrayRecordWriter(str(filled), "group_size:1")  # a row is read alone
    for record in records:
      writer.write(record.tobytes())
      digest.update(record)
    writer.close()
    with filled.open("rb") as source, files.replacing(path) as file:
      shutil.copyfileobj(source, file)
    return {"bytes": filled.stat().st_size, "hash": digest.hexdigest()[:32]}
