"""JSON lines as people have them: in one file, in several or by a pattern, gzipped, with a BOM.

Where any kind of file will do, Parquet files and saved datasets (`dlm.data.tables`) are read too.
"""

import glob
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dlm import files
from dlm.data import tables

BOM = b"\xef\xbb\xbf"  # a byte order mark, which some programs of Windows write
GZIP = b"\x1f\x8b"


class Line(NamedTuple):
  path: pathlib.Path
  number: int  # 1, 2, ... of its file, blank lines counted
  value: Any  # what the JSON says

  @property
  def where(self) -> str:
    return f"{self.path}, line {self.number}"


def found(paths: str | pathlib.Path) -> list[pathlib.Path]:
  """The files of a path, of several with commas between them, of a pattern like data/*.jsonl.gz.

  ValueError where nothing is found, or what is neither a regular file nor a saved dataset.
  """
  if pathlib.Path(paths).exists():
    return [_taken(paths)]
  names = []
  for part in str(paths).split(","):
    here = [part] if pathlib.Path(part).exists() else sorted(glob.glob(part, recursive=True))
    if not here:
      raise ValueError(f"there is no file {part}")
    names += here
  return [_taken(name) for name in names]


def _taken(path: str | pathlib.Path) -> pathlib.Path:
  path = pathlib.Path(path)
  return path if tables.is_dataset(path) else files.regular(path)


def read(paths: str | pathlib.Path, kind: str | None = None) -> Iterator[Line]:
  """Every line or row of files, of a kind in READERS, or None: as each begins.

  ValueError names the line or file that is none.
  """
  for path in found(paths):
    yield from READERS[kind or kind_of(path)](path)


def kind_of(path: pathlib.Path) -> str:
  """One of READERS, by what the file begins with."""
  if path.is_dir():
    return "dataset"
  with path.open("rb") as file:
    return "parquet" if file.read(len(tables.PARQUET)) == tables.PARQUET else "jsonl"


def read_json(path: pathlib.Path) -> Iterator[Line]:
  """Every line that is not blank. ValueError names the line that is no JSON, or no text."""
  # Lines of bytes: a str would also be cut at characters that JSON may hold, such as U+2028.
  for number, text in enumerate(_lines(path), start=1):
    if text.strip():
      line = Line(path, number, files.parse_json(text, f"{path}, line {number}"))
      if rb"\u" in text:
        _check_text(line)
      yield line


def read_parquet(path: pathlib.Path) -> Iterator[Line]:
  """Every row."""
  return _numbered(path, tables.read_parquet(path))


def read_dataset(path: pathlib.Path) -> Iterator[Line]:
  """Every row of a folder that `save_to_disk` of Hugging Face's datasets wrote."""
  return _numbered(path, tables.read_dataset(path))


READERS = {"jsonl": read_json, "parquet": read_parquet, "dataset": read_dataset}


def _numbered(path: pathlib.Path, rows: Iterator[Any]) -> Iterator[Line]:
  for number, row in enumerate(rows, start=1):
    yield Line(path, number, {name: value for name, value in row.items() if value is not None})


def _lines(path: pathlib.Path) -> Iterator[bytes]:
  with path.open("rb") as file:
    is_packed = file.read(2) == GZIP
    file.seek(0)
    if not is_packed:
      yield from _without_mark(file)
      return
    try:
      with gzip.open(file) as unpacked:
        yield from _without_mark(unpacked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise ValueError(f"{path} is damaged: {error}") from error


def _without_mark(file: BinaryIO) -> Iterator[bytes]:
  yield file.readline().removeprefix(BOM)
  yield from file


def _check_text(line: Line) -> None:
  """JSON can spell half of a character, as "\\ud800"."""
  try:
    json.dumps(line.value, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise ValueError(f"{line.where}: {half!r} is half of a character") from error
