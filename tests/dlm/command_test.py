"""A mistake of the caller: one line, exit code 2. A mistake of ours: a traceback and 1."""

import errno

import pytest

from dlm import command
from tests.experiments import mains

MAIN = """
from absl import flags
from dlm import command

COUNT = flags.DEFINE_integer("count", None, "How many.")
ERROR = flags.DEFINE_string("error", None, "What goes wrong.")


def main():
  if ERROR.value == "late":
    raise ValueError("ours")
  with command.mistakes():
    if ERROR.value == "early":
      raise ValueError("theirs,\\n  in two lines")
  print("counted", COUNT.value)


command.run(main, required=(COUNT,))
"""


@pytest.fixture
def count(tmp_path):
  (tmp_path / "count.py").write_text(MAIN)
  return lambda *arguments: mains.run(tmp_path, tmp_path / "count.py", *arguments)


def test_main_runs_with_its_flags(count):
  assert count("--count=3") == mains.Done(0, "counted 3\n", "")


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    ((), "count: --count is missing"),
    (("--count=3", "--error=early"), "count: theirs, in two lines"),
    (("--count=many",), "count: flag --count=many: invalid literal for int() with base 10: 'many'"),
    (("--count=3", "--counts=3"), "count: Unknown command line flag 'counts'. Did you mean: count"),
    (("--count=3", "three"), "count: 'three' belongs to no flag"),
  ],
)
def test_mistake_is_one_line(count, arguments, line):
  done = count(*arguments)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_error_of_ours_keeps_its_traceback(count):
  done = count("--count=3", "--error=late")
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "ValueError: ours" in done.stderr


@pytest.mark.parametrize(
  "error", [ValueError("no"), FileNotFoundError(errno.ENOENT, "no"), ModuleNotFoundError("no")]
)
def test_kinds_that_are_the_callers(error, capsys):
  with pytest.raises(SystemExit, match="2"), command.mistakes():
    raise error
  assert capsys.readouterr().err.endswith("no\n")


def test_other_kinds_pass():
  with pytest.raises(TypeError, match="ours"), command.mistakes():
    raise TypeError("ours")
  with pytest.raises(ValueError, match="ours"), command.mistakes((OSError,)):
    raise ValueError("ours")
