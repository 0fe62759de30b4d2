"""What all mains share: a mistake of the caller ends in one line and exit code 2."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags, logging

MISTAKES = (ValueError, OSError, ModuleNotFoundError)


def run(main: Callable[[], None], *, required: tuple[flags.FlagHolder, ...] = ()) -> NoReturn:
  """Parses the flags and calls `main`; unknown flags and config fields are mistakes too."""

  def parse(arguments: list[str]) -> list[str]:
    try:
      rest = flags.FLAGS(arguments)
      for flag in required:
        if flag.value is None:
          raise ValueError(f"--{flag.name} is missing")
      if rest[1:]:
        raise ValueError(f"{rest[1]!r} belongs to no flag")
      return rest
    except (AttributeError, KeyError) as error:  # ml_collections: no such field
      field = error.args[0]  # of an AttributeError: the KeyError that it came from
      refuse(f"unknown config field {field.args[0] if isinstance(field, KeyError) else field}")
    except (flags.Error, TypeError, *MISTAKES) as error:
      refuse(error)

  def called(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # orbax tells its life at INFO
    main()

  app.run(called, flags_parser=parse)


@contextlib.contextmanager
def mistakes(kinds: tuple[type[Exception], ...] = MISTAKES) -> Iterator[None]:
  """Errors of these kinds, raised inside, are the caller's and not ours."""
  try:
    yield
  except kinds as error:
    refuse(error)


def refuse(error: object) -> NoReturn:
  """Says what the caller got wrong, in one line, and exits with 2."""
  print(f"{pathlib.Path(sys.argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(2)
