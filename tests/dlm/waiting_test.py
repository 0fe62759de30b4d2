import re
import sys
import threading

import pytest

from dlm import waiting


def until(capsys, pattern: str) -> None:
  """Waits for what is told."""
  seen, tick = "", threading.Event()
  for _ in range(10_000):
    seen += capsys.readouterr().err
    if re.search(pattern, seen):
      return
    tick.wait(0.005)
  pytest.fail(f"told was {seen!r}")


def test_at_a_terminal_is_told_what_goes_on(capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  with waiting.told("the first", every=0.001) as at:
    until(capsys, r"^the first, 0 s\n")
    at("the second")
    until(capsys, r"(?m)^the second, \d+ s\n")
  capsys.readouterr()
  assert not [thread for thread in threading.enumerate() if "tell" in thread.name]
  assert capsys.readouterr().err == ""


def test_a_file_of_errors_holds_none_of_it(capsys):
  with waiting.told("the first", every=0.0) as at:
    at("the second")
  assert capsys.readouterr().err == ""
