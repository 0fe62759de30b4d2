"""How dlm meets the disk: what appears is whole or not there, and what is read is a regular file.

A new file or folder is filled beside its place, as `.NAME.part`, forced to the disk and renamed. It
is locked meanwhile: of two processes that write the same place the second is refused, and what a
killed one left is cleared away by the next. Errors of the system name the path that was asked for.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

Path = str | os.PathLike


class InUse(ValueError):
  """Another process writes there."""


LOCK = ".lock"  # in a folder that one process writes

WHOLE, PIECES, PIECE = 2**26, 256, 2**16  # bytes of a file that a fingerprint is taken of

# What file systems answer that lack an operation; EBADF: NFS, asked to lock a folder.
UNKNOWN = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


# ---------------------------------------------------------------------------------------------
# Writing


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A file to fill, which takes the place of `path` if all goes well and else goes away."""
  path = pathlib.Path(os.path.realpath(path))  # a link stays one
  beside = _beside(path)
  with naming(path, beside), _open(beside, path) as file:
    try:
      file.truncate()
      yield file
      file.flush()
      os.fsync(file.fileno())
      beside.replace(path)
    except BaseException:
      beside.unlink(missing_ok=True)
      raise
    _sync(path.parent)


def write(path: Path, content: bytes | str) -> None:
  """The file holds `content`, text as UTF-8; whoever reads it meanwhile sees the old or the new."""
  with replacing(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, indent: int = 2) -> None:
  write(path, json.dumps(value, indent=indent) + "\n")


def check_place(path: Path, *read: Path) -> None:
  """Says before the work what `replacing` would say after it; and nothing that is `read` is lost.

  Raises:
    ValueError: `path` is a folder, its own folder is not there or takes no files, or it is one of
      the files of `read`, whose place the new one would take.
  """
  place = pathlib.Path(os.path.realpath(path))  # what a link leads to
  if place.is_dir():
    raise ValueError(f"{path} cannot be written: it is a folder")
  if not place.parent.is_dir():
    raise ValueError(f"{path} cannot be written: {place.parent} is not a folder")
  if not os.access(place.parent, os.W_OK | os.X_OK):
    raise ValueError(f"{path} cannot be written: {place.parent} takes no files of this user")
  if place.exists() and any(os.path.samefile(place, each) for each in read):
    raise ValueError(f"{path} cannot be written: it is read, and would be lost")


def made_folder(path: Path) -> pathlib.Path:
  """A folder for files of which later ones take the place of earlier; made if it is not there.

  Raises:
    OSError, ValueError: it cannot be made, or takes no files.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  check_place(path / LOCK)
  return path


@contextlib.contextmanager
def appearing(directory: Path) -> Iterator[pathlib.Path]:
  """A folder to fill, which becomes `directory` if all goes well and else goes away.

  Raises:
    ValueError: the directory exists and is not empty, or another process is making it.
  """
  directory = pathlib.Path(directory).absolute()
  beside = _beside(directory)
  with naming(directory, beside):
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _made(beside, directory):
      try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
          raise ValueError(f"{directory} exists and is not empty: nothing is written over")
        _clear(beside)  # of what a killed process left
        yield beside
        for path in beside.rglob("*"):
          _sync(path)
        beside.rename(directory)
      except BaseException:
        shutil.rmtree(beside)
        raise
    _sync(directory.parent)


def set_aside(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Moves what is damaged into `folder`, under a name that is free there; returns where it is."""
  folder.mkdir(exist_ok=True)
  names = (path.name if n == 1 else f"{path.name}-{n}" for n in range(1, sys.maxsize))
  kept = next(folder / name for name in names if not (folder / name).exists())
  path.rename(kept)
  return kept


# ---------------------------------------------------------------------------------------------
# One process at a time


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
  """Inside, the folder is this process's alone; ValueError if it is another's already."""
  folder = pathlib.Path(folder)
  with naming(folder), _open(folder / LOCK, folder):
    try:
      yield
    finally:
      (folder / LOCK).unlink(missing_ok=True)


def locked_file(path: Path) -> BinaryIO:
  """The file, made if it is not there, open to read and write, this process's until it is closed.

  ValueError if another process has it.
  """
  path = pathlib.Path(path)
  with naming(path, path):
    return _open(path, path)


@contextlib.contextmanager
def _made(folder: pathlib.Path, named: pathlib.Path) -> Iterator[None]:
  """Makes a folder, unless it is there, and locks it: itself, so that no file tells of it later."""
  while True:
    folder.mkdir(exist_ok=True)
    try:
      descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another process has just renamed or removed it
      continue
    try:
      if _owns(descriptor, folder, named):
        yield
        return
    finally:
      os.close(descriptor)


def _open(path: pathlib.Path, named: pathlib.Path) -> BinaryIO:
  """Open and locked. The system frees the lock when the process ends, however it ends."""
  while True:
    if path.exists():
      regular(path)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
      if _owns(file.fileno(), path, named):
        return file
    except BaseException:
      file.close()
      raise
    file.close()


def _owns(descriptor: int, path: pathlib.Path, named: pathlib.Path) -> bool:
  """Locks what is open. False: it has left its path. ValueError: another process has it."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise InUse(f"{named} is being written by another process") from error
  except OSError as error:
    if error.errno not in UNKNOWN:
      raise
    _say_unlocked(named.parent)
  return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


@functools.cache
def _say_unlocked(folder: pathlib.Path) -> None:
  print(
    f"{folder}: this file system has no locks: make sure that no two processes write the same file",
    file=sys.stderr,
  )


# ---------------------------------------------------------------------------------------------
# Reading


def regular(path: Path) -> pathlib.Path:
  """The path, if a file is there: a pipe would be waited on for ever, a device may have no end.

  Raises:
    FileNotFoundError, ValueError: nothing is there, or something else.
  """
  path = pathlib.Path(path)
  if not stat.S_ISREG(path.stat().st_mode):
    raise ValueError(f"{path} is no regular file")
  return path


def fingerprint(path: Path) -> str:
  """Size and hash of a file; of a long one, of pieces all over it: the cost is bounded."""
  size = regular(path).stat().st_size
  pieces, length = (1, size) if size <= WHOLE else (PIECES, PIECE)
  found = hashlib.blake2b(digest_size=8)
  with open(path, "rb") as file:
    for k in range(pieces):
      file.seek(k * (size - length) // max(pieces - 1, 1))
      found.update(file.read(length))
  return f"{size} bytes, {found.hexdigest()}"


def read_json(path: Path) -> Any:
  """The JSON value of a regular file; ValueError if it holds none."""
  return parse_json(regular(path).read_bytes(), path)


def parse_json(text: bytes | str, where: object) -> Any:
  """The JSON value; ValueError, which begins with `where`, if it is none."""
  try:
    return json.loads(text)
  except RecursionError as error:
    raise ValueError(f"{where}: not JSON (brackets are nested too deep)") from error
  except ValueError as error:
    raise ValueError(f"{where}: not JSON ({error})") from error


# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(path: pathlib.Path, beside: pathlib.Path | None = None) -> Iterator[None]:
  """Errors of the system that name no file, or one within `beside`, name `path`."""
  try:
    yield
  except OSError as error:
    inside = beside is not None and pathlib.Path(str(error.filename)).is_relative_to(beside)
    if error.errno is None or not (error.filename is None or inside):
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


def of_system(error: Exception, path: Path) -> OSError | None:
  """The error of the system that a library of another language tells of, naming `path`."""
  found = re.search(r"os[ _]error(?:_code=')?\W*(\d+)", str(error))
  return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else None


def _beside(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.part")


def _clear(folder: pathlib.Path) -> None:
  """Removes all that is in a folder."""
  for path in folder.iterdir():
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink()


def _sync(path: pathlib.Path) -> None:
  """Forces a file, or the names in a folder, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in UNKNOWN:
      raise
  finally:
    os.close(descriptor)
