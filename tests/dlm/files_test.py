"""Files and folders appear whole or not at all, and are one process's while they are written."""

import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import pytest

from dlm import files

ROOT = pathlib.Path(__file__).parents[2]


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_reader_sees_the_old_file_or_the_new_one(tmp_path):
  path = tmp_path / "a.json"
  files.write_json(path, {"a": 1})
  with files.replacing(path) as file:
    file.write(b"half")
    file.flush()
    assert path.read_text() == '{\n  "a": 1\n}\n'
  assert path.read_bytes() == b"half" and names(tmp_path) == ["a.json"]
  assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o022))


def test_link_stays_one(tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "file")
  files.write(tmp_path / "link", "a")
  assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "a"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_failed_leaves_nothing(tmp_path, error):
  files.write(tmp_path / "file", "before")
  with pytest.raises(type(error)), files.replacing(tmp_path / "file") as file:
    file.write(b"half")
    raise error
  with pytest.raises(type(error)), files.appearing(tmp_path / "folder") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "half").write_text("")
    raise error
  assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "before"


def test_folder_appears_whole(tmp_path):
  with files.appearing(tmp_path / "new" / "folder") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("a")
    assert not (tmp_path / "new" / "folder").exists()
  assert names(tmp_path / "new") == ["folder"] and names(tmp_path / "new" / "folder") == ["deep"]
  (tmp_path / "empty").mkdir()
  with files.appearing(tmp_path / "empty") as folder:
    (folder / "file").write_text("a")
  assert names(tmp_path / "empty") == ["file"]


@pytest.mark.parametrize("name", ["folder", "file"])
def test_folder_in_whose_place_something_is_is_refused(tmp_path, name):
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "mine").write_text("")
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match=f"{name} exists and is not empty"):
    files.appearing(tmp_path / name).__enter__()
  assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["mine"]


KILLED = """
import os, signal, sys
from dlm import files

at = sys.argv[1]
with files.appearing(at + "/folder") as folder, files.replacing(at + "/file") as f:
  (folder / "weights").write_text("half")
  f.write(b"half")
  f.flush()
  print("written", flush=True)
  if sys.argv[2] == "wait":
    sys.stdin.read()
  os.kill(os.getpid(), signal.SIGKILL)
"""


def process(tmp_path, what):
  return subprocess.Popen(
    [sys.executable, "-c", KILLED, str(tmp_path), what],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )


def fill(tmp_path):
  with files.appearing(tmp_path / "folder") as folder:
    assert names(folder) == []
    (folder / "whole").write_text("")
  files.write(tmp_path / "file", "whole")


def test_next_run_clears_what_a_killed_one_left(tmp_path):
  with process(tmp_path, "die") as killed:
    assert killed.stdout.readline() == b"written\n"
  assert killed.returncode == -signal.SIGKILL
  assert names(tmp_path) == [".file.part", ".folder.part"]
  fill(tmp_path)
  assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["whole"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
  with process(tmp_path, "wait") as living:
    assert living.stdout.readline() == b"written\n"
    for name, write in (
      ("folder", lambda: files.appearing(tmp_path / "folder").__enter__()),
      ("file", lambda: files.write(tmp_path / "file", "whole")),
    ):
      with pytest.raises(ValueError, match=f"{name} is being written by another process"):
        write()
    assert (tmp_path / ".folder.part" / "weights").read_text() == "half"
    living.stdin.close()
  fill(tmp_path)
  assert names(tmp_path) == ["file", "folder"]


def test_folder_is_locked_until_it_is_left(tmp_path):
  message = f"{tmp_path} is being written by another process"
  with files.locked_folder(tmp_path), pytest.raises(ValueError, match=message):
    files.locked_folder(tmp_path).__enter__()
  assert names(tmp_path) == []
  with files.locked_folder(tmp_path):
    pass


def test_full_disk_is_told_with_the_path_and_leaves_nothing(tmp_path):
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
  try:
    with pytest.raises(OSError, match=rf"too large: '{tmp_path}/file'"):
      files.write(tmp_path / "file", b"a" * 2**17)
    told = pytest.raises(OSError, match=rf"too large: '{tmp_path}/folder'")
    with told, files.appearing(tmp_path / "folder") as folder:
      (folder / "weights").write_bytes(b"a" * 2**17)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert names(tmp_path) == []


def test_place_that_cannot_be_is_told_with_its_path(tmp_path):
  (tmp_path / "file").write_text("in the way")
  (tmp_path / "folder").mkdir()
  for write, named in (
    (lambda: files.write(tmp_path / "file" / "a", ""), "file/a"),
    (lambda: files.write(tmp_path / "folder", ""), "folder"),
    (lambda: files.write(tmp_path / "nowhere" / "a", ""), "nowhere/a"),
    (lambda: files.appearing(tmp_path / "file" / "a").__enter__(), "file"),
  ):
    with pytest.raises(OSError, match=f": '{tmp_path}/{named}'$"):
      write()
  assert names(tmp_path) == ["file", "folder"]


def test_damaged_things_are_set_aside_under_free_names(tmp_path):
  for n in range(3):
    (tmp_path / "7").write_text(str(n))
    files.set_aside(tmp_path / "7", tmp_path / "damaged")
  assert names(tmp_path) == ["damaged"]
  assert [(tmp_path / "damaged" / x).read_text() for x in ("7", "7-2", "7-3")] == ["0", "1", "2"]


def test_long_file_is_known_by_pieces_of_it(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "WHOLE", 100)
  monkeypatch.setattr(files, "PIECES", 5)
  monkeypatch.setattr(files, "PIECE", 10)
  path = tmp_path / "file"
  path.write_bytes(bytes(range(200)))
  before = files.fingerprint(path)
  changed = []
  for at in range(200):
    path.write_bytes(bytes(0 if i == at and at else i for i in range(200)))
    changed += [at] if files.fingerprint(path) != before else []
  assert before.startswith("200 bytes, ")
  wanted = [at for start in (0, 47, 95, 142, 190) for at in range(start, start + 10)]
  assert changed == wanted[1:]  # the first byte is 0 in all of them


def test_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path / "pipe", "/dev/zero"):
    with pytest.raises(ValueError, match=f"{path} is no regular file"):
      files.regular(path)
  with pytest.raises(ValueError, match="pipe is no regular file"):
    files.locked_file(tmp_path / "pipe")
  with pytest.raises(FileNotFoundError):
    files.regular(tmp_path / "nowhere")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b"{", "in.json: not JSON (Expecting property name"),
    (b'"\xff"', "in.json: not JSON ('utf-8' codec"),
    (b"[" * 100_000, "in.json: not JSON (brackets are nested too deep)"),
  ],
)
def test_what_is_no_json_is_named(text, message):
  with pytest.raises(ValueError) as told:
    files.parse_json(text, "in.json")
  assert str(told.value).startswith(message)
