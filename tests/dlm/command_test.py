"""A mistake of the caller: one line, exit code 2. A mistake of ours: a traceback and 1."""

import pytest

from tests.experiments import mains

MAIN = """
import json
import os
import signal
from absl import flags
from dlm import command

COUNT = flags.DEFINE_integer("count", None, "How many.")
ERROR = flags.DEFINE_string("error", None, "What goes wrong.")
CONFIG = flags.DEFINE_string("config", None, "Some config.")


def main():
  if ERROR.value == "ours":
    {}["ours"]
  if ERROR.value == "library":
    json.loads("{")
  if ERROR.value == "named":
    raise ValueError("theirs,\\n  in two lines")
  if ERROR.value == "backend":
    raise NotImplementedError("implementation='gpu' serves no cpu")
  if ERROR.value == "system":
    open("/nowhere/at/all")
  if ERROR.value == "full":
    raise OSError(28, "No space left on device")
  if ERROR.value == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
  if ERROR.value == "package":
    import no_such_package
  print("counted", COUNT.value, *command.FIELDS.value)


command.run(main, required=(COUNT,))
"""


@pytest.fixture
def count(tmp_path):
  (tmp_path / "count.py").write_text(MAIN)
  return lambda *arguments: mains.run(tmp_path, tmp_path / "count.py", *arguments)


def test_main_runs_with_its_flags(count):
  assert count("--count=3") == mains.Done(0, "counted 3\n", "")
  fields = ("--config.policy.k=2", "--config.bos", "--config.prompts=('a=b',)")
  done = count("--count=3", "--config=FILE.py", *fields)
  assert done == mains.Done(0, "counted 3 policy.k=2 bos=true prompts=('a=b',)\n", "")


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    ((), "count: --count is missing"),
    (("--count=3", "--error=named"), "count: theirs, in two lines"),
    (("--count=3", "--error=backend"), "count: implementation='gpu' serves no cpu"),
    (("--count=3", "--error=system"), "count: /nowhere/at/all: No such file or directory"),
    (("--count=3", "--error=full"), "count: [Errno 28] No space left on device"),
    (("--count=3", "--error=package"), "count: No module named 'no_such_package'"),
    (("--count=3", "--config.block=4"), "count: --config.block=4 is a field of no --config"),
    (("--count=many",), "count: flag --count=many: invalid literal for int() with base 10: 'many'"),
    (("--count=3", "--counts=3"), "count: Unknown command line flag 'counts'. Did you mean: count"),
    (("--count=3", "three"), "count: 'three' belongs to no flag"),
  ],
)
def test_mistake_is_one_line(count, arguments, line):
  done = count(*arguments)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_an_interrupt_is_one_line(count):
  assert count("--count=3", "--error=interrupt") == mains.Done(130, "", "count: interrupted\n")


def test_mistake_of_a_hundred_thousand_characters_is_a_line_that_can_be_read(count):
  done = count("--count=3", "(" * 60_000 + ")" * 60_000)
  assert done.returncode == 2
  assert done.stderr.startswith("count: '(((") and done.stderr.endswith(")))' belongs to no flag\n")
  assert len(done.stderr) < 5000 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
  ("error", "told"), [("ours", "KeyError: 'ours'"), ("library", "JSONDecodeError: Expecting")]
)
def test_error_of_ours_keeps_its_traceback(count, error, told):
  done = count("--count=3", f"--error={error}")
  assert done.returncode == 1
  assert "Traceback" in done.stderr and told in done.stderr
