"""Rows of Parquet files, and of datasets that `save_to_disk` of Hugging Face's `datasets` wrote.

pyarrow alone reads both. Such a dataset is a folder: dataset_info.json, state.json and the Arrow
streams that this names. A folder with dataset_dict.json holds several, a folder for each split.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from dlm import files
from dlm.data.install import require

# Columns that are read: what a document or a prompt may be made of.
FIELDS = (
  "text", "prompt", "completion", "response", "messages", "tools", "chat_template_kwargs", "infill",
)  # fmt: skip
AT_ONCE = 1024  # rows
PARQUET = b"PAR1"
STATE, SPLITS = "state.json", "dataset_dict.json"
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream


def is_dataset(path: pathlib.Path) -> bool:
  """Is it a folder with one dataset or several?"""
  return (path / STATE).is_file() or (path / SPLITS).is_file()


def splits(folder: pathlib.Path) -> list[str] | None:
  """Names of the splits that a folder holds; None if it is one dataset itself."""
  if (folder / STATE).is_file():
    return None
  value = files.read_json(folder / SPLITS)
  names = value.get("splits") if isinstance(value, dict) else None
  if not isinstance(names, list) or not all(map(_is_name, names)):
    raise ValueError(f"{folder / SPLITS}: splits={names!r:.80} must be a list of names")
  return names


def parts(folder: pathlib.Path) -> list[pathlib.Path]:
  """The Arrow files of a dataset, in order.

  ValueError: it holds several datasets, or says of none which they are.
  """
  if (names := splits(folder)) is not None:
    raise ValueError(f"{folder} holds the splits {', '.join(names)}: name one, as {folder}/NAME")
  state = files.read_json(folder / STATE)
  named = state.get("_data_files") if isinstance(state, dict) else None
  if not isinstance(named, list) or not all(isinstance(each, dict) for each in named):
    raise ValueError(f"{folder / STATE}: _data_files={named!r:.80} must be a list of objects")
  if state.get("_indices_data_files"):
    raise ValueError(f"{folder} picks rows by indices: save it again after flatten_indices()")
  found = [each.get("filename") for each in named]
  if not all(map(_is_name, found)):
    raise ValueError(f"{folder / STATE}: filenames {found!r:.80} must be names of files in it")
  return [files.regular(folder / name) for name in found]


def read_parquet(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  library = require("pyarrow.parquet")
  number = 0
  try:
    with library.ParquetFile(path) as file:
      known = [name for name in FIELDS if name in file.schema_arrow.names]
      for batch in file.iter_batches(AT_ONCE, columns=known):
        for row in batch.to_pylist():
          number += 1
          yield row
  except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
    raise ValueError(f"{path} cannot be read after row {number}: {error}") from error


def read_dataset(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  for path in parts(folder):
    yield from _read_stream(path)


def _read_stream(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  library, number = require("pyarrow.ipc"), 0
  with path.open("rb") as file:
    file.seek(-min(len(END), path.stat().st_size), 2)
    if file.read() != END:  # cut between two batches it would read as a shorter one
      raise ValueError(f"{path} is damaged: it is no whole Arrow stream")
    file.seek(0)
    try:
      with library.open_stream(file) as stream:
        known = [name for name in FIELDS if name in stream.schema.names]
        for batch in stream:
          for start in range(0, batch.num_rows, AT_ONCE):
            for row in batch.slice(start, AT_ONCE).select(known).to_pylist():
              number += 1
              yield row
    except (OSError, ValueError) as error:
      raise ValueError(f"{path} cannot be read after row {number}: {error}") from error


def _is_name(value: Any) -> bool:
  """A file or folder directly below, and not one elsewhere."""
  return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value
