"""What all mains share: a mistake of the caller ends in one line and exit code 2.

Ctrl-C ends in one line, too, and 130.

A mistake is told by where its error was raised: dlm's own code raises ValueError for what it was
given, and the system raises OSError for what the caller's machine lacks. A ValueError of a library
is a fault of ours and keeps its traceback.
"""

import ast
import os
import pathlib
import signal
import sys
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NoReturn

from absl import app, flags, logging

from dlm import processes

LONGEST = 4000  # characters of a line
INTERRUPTED = 128 + signal.SIGINT  # exit code
OURS = ("dlm", "kernels_pallas", "experiments", "configs", "__main__")
# What the command line says of the config; `dlm.build.tables.Config.read` takes it.
FIELDS = flags.DEFINE_multi_string(
  "config_field", [], "A field of --config as a.b=VALUE; --config.a.b=VALUE says the same."
)


def run(
  main: Callable[[], None],
  *,
  required: tuple[flags.FlagHolder, ...] = (),
  distributed: bool = False,
) -> NoReturn:
  """Parses the flags and calls `main`; unknown flags and config fields are mistakes too.

  `distributed`: `main` may be one of several processes, see `dlm.processes`.
  """

  def parse(arguments: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(list(_with_fields(arguments)))
      for flag in required:
        if flag.value is None:
          raise ValueError(f"--{flag.name} is missing")
      if FIELDS.value and not ("config" in flags.FLAGS and flags.FLAGS["config"].value):
        raise ValueError(f"--config.{FIELDS.value[0]} is a field of no --config")
      if rest[1:]:
        raise ValueError(f"{rest[1]!r} belongs to no flag")
      return rest
    except (flags.Error, ValueError) as error:
      refuse(error)

  def called(_: list[str]) -> None:
    logging.set_verbosity(logging.FATAL)  # orbax tells its life, and what it raises besides
    sys.excepthook = _told
    with processes.leaving():
      try:
        processes.join(distributed)
        main()
      except KeyboardInterrupt:
        print(f"{_name()}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
      except Exception as error:
        if not _is_mistake(error):
          raise
        refuse(error)

  app.run(called, flags_parser=parse)


def _told(kind: type, error: BaseException, trace: types.TracebackType | None) -> None:
  """Tracebacks of threads, but not those of tensorstore's, which outlive a write that failed."""
  if str(error) != "Event loop is closed":
    sys.__excepthook__(kind, error, trace)


def _is_mistake(error: Exception) -> bool:
  if processes.broke_off(error):
    return False
  if isinstance(error, OSError | ModuleNotFoundError):
    return True
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  module = frame.f_globals.get("__name__", "")
  return isinstance(error, ValueError | NotImplementedError) and module.split(".")[0] in OURS


def _with_fields(arguments: list[str]) -> Iterator[str]:
  """`--config.a.b=VALUE` as the flag that absl knows; without a value it means true."""
  for each in arguments:
    if each.startswith("--config."):
      field, equals, value = each.removeprefix("--config.").partition("=")
      yield f"--{FIELDS.name}={field}={value if equals else 'true'}"
    else:
      yield each


def check_read(mode: str, reads: Mapping[str, Collection[flags.FlagHolder]]) -> None:
  """Refuses flags that were given, and that only other modes of a main read.

  `reads`: of each mode, as it is called in the error, the flags that not every mode reads.
  """
  own = {flag.name for flag in reads[mode]}
  for other, read in reads.items():
    for flag in read:
      if flag.present and flag.name not in own:
        raise ValueError(f"--{flag.name} does nothing {mode}; it is read {other}")


def options(given: list[str]) -> dict[str, object]:
  """Of flags that say NAME=VALUE, a Python literal; what is no literal is a string."""
  found = {}
  for option in given:
    name, separator, value = option.partition("=")
    if not separator:
      raise ValueError(f"{option!r} must be NAME=VALUE")
    try:
      found[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      found[name] = value
  return found


def refuse(error: object) -> NoReturn:
  """Says what the caller got wrong, in one line, and exits with 2."""
  if isinstance(error, OSError) and error.strerror and error.filename is not None:
    error = f"{os.fsdecode(error.filename)}: {error.strerror}"
  line = " ".join(str(error).split())
  if len(line) > LONGEST:  # it quotes what it was given
    line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
  print(f"{_name()}: {line}", file=sys.stderr)
  sys.exit(2)


def _name() -> str:
  return pathlib.Path(sys.argv[0]).stem
