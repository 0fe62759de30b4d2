"""Answers and the order in which they were written: what `sample.py --trace --out=FILE` says."""

from typing import Any, NamedTuple

import numpy as np

from dlm.data import lines
from dlm.data.sources.example import check_split, split_of
from dlm.data.tokenizers import Tokenizer

LEFT_OUT = "max_forwards"  # reason of answers with places that nothing was written to


class Traces(NamedTuple):
  """Of each answer."""

  rows: list[np.ndarray]  # ids, the prompt's first
  whens: list[np.ndarray]  # the forward that wrote each; -1: it was given
  left_out: int


def read_traces(paths: str, split: str, tokenizer: Tokenizer) -> Traces:
  """Answers of files as `dlm.data.lines.found` takes them, each with its prompt.

  A row ends with its stop id. Answers that ran out of forwards are left out. A line's number
  decides its split, as of jsonl:PATH. The tokenizer must be that of the model that wrote: of ids
  nobody can tell whose they are.

  Raises:
    ValueError: names the line that is no trace, or says that no line falls into the split.
  """
  check_split(split)
  rows, whens, left_out = [], [], 0
  for line in lines.read(paths, "jsonl"):
    if split_of(f"line {line.number}") != split:
      continue
    record = line.value if isinstance(line.value, dict) else {}
    row_T, when_T = _ids(record, "row", line.where), _ids(record, "when", line.where)
    if len(row_T) != len(when_T) or not (when_T >= 0).any():
      raise ValueError(
        f"{line.where}: each of {len(row_T)} ids in row must have its own of {len(when_T)} in when,"
        " and one be written"
      )
    if record.get("reason") == LEFT_OUT:
      left_out += 1
      continue
    written = np.flatnonzero(when_T >= 0)
    if record.get("reason") == "stop_id":  # it stands behind all that counts as the answer
      size = 1 + int(written[len(_ids(record, "tokens", line.where))])
      row_T, when_T = row_T[:size], when_T[:size]
    if row_T.min() < 0 or row_T.max() >= tokenizer.vocab_size:
      raise ValueError(
        f"{line.where}: row holds ids outside 0..{tokenizer.vocab_size - 1}, the tokenizer's"
      )
    if (row_T == tokenizer.mask_id).any():
      raise ValueError(f"{line.where}: row holds mask_id={tokenizer.mask_id}")
    rows.append(row_T)
    whens.append(when_T)
  if not rows:
    raise ValueError(f"source 'traces:{paths}' is empty: no trace falls into {split=}")
  return Traces(rows, whens, left_out)


def _ids(record: dict[str, Any], field: str, where: str) -> np.ndarray:
  values = record.get(field)
  if not isinstance(values, list) or not all(type(value) is int for value in values):
    raise ValueError(f"{where}: needs {field}, a list of whole numbers: write it by --trace")
  return np.array(values, np.int32)
