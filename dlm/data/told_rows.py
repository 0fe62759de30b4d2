"""Rows with their noise and what a teacher said of it, in ArrayRecord files.

    DIR/index.json                         what all files share, and the rows of each; comes last
    DIR/SPLIT-00003-of-00064.array_record  one row a record
    DIR/SPLIT-00003-of-00064.json          once it is there the file is whole

`dlm.targets` writes them, and `targets:DIR` is a source that reads them. A record is a
`record_type`: the row as of `dlm.data.array_records`, its draws, and of each target the teacher's
likeliest ids, their log-probabilities and that of all others together.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlm.data import array_records
from dlm.data.array_records import StoredRows
from dlm.data.tokenizers import Tokenizer

VERSION = 1
FIELDS = {
  "version": int, "tokenizer": str, "ids": int, "length": int, "kept": int, "draws": dict,
  "objective": dict, "splits": dict,
}  # fmt: skip


def record_type(length: int, ids: int, kept: int, draws: Mapping[str, Any]) -> np.dtype:
  """Of a row whose teacher's `kept` likeliest ids are told. `draws`: shapes of a row's, by name."""
  row = array_records.record_type(length, ids)
  return np.dtype(
    [
      *((name, *row.fields[name][0].subdtype) for name in row.names),
      ("id", row["tokens"].base, (length, kept)),
      ("logp", "<f4", (length, kept)),
      ("rest", "<f4", length),
      *((f"drawn/{name}", "<f4", tuple(shape)) for name, shape in draws.items()),
    ]
  )


@dataclasses.dataclass(frozen=True, eq=False)
class ToldRows(StoredRows):
  """The rows of one split, all of it."""

  told: Mapping[str, Any] = dataclasses.field(kw_only=True)  # index.json

  def extra(self, record_B: np.ndarray) -> dict[str, np.ndarray]:
    """By the names that `dlm.objectives.told` reads."""
    drawn = {name: record_B[name] for name in record_B.dtype.names if name.startswith("drawn/")}
    return {
      "id_BxLxK": record_B["id"].astype(np.int32),
      "logp_BxLxK": record_B["logp"].copy(),
      "rest_BxL": record_B["rest"].copy(),
      **{name: each.copy() for name, each in drawn.items()},
    }


def open_told_rows(directory: str, split: str, tokenizer: Tokenizer) -> ToldRows:
  """Opens what `dlm.targets.write_targets` wrote with an equal tokenizer.

  ValueError: it is not complete, a file is missing or has another size, or it is of another
  tokenizer.
  """
  root, index, shards, records = array_records.opened(
    "targets", directory, split, tokenizer, FIELDS, VERSION, "experiments/write_targets.py"
  )
  return ToldRows(
    "targets",
    records,
    record_type(index["length"], index["ids"], index["kept"], index["draws"]),
    {},
    {"name": "targets", "documents": sum(shard["rows"] for shard in shards)},
    functools.partial(array_records.fingerprint, root),
    told=index,
  )
