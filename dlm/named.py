"""Functions of a user's own, as a config names them: "package.module:function"."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any


def function(field: str, name: str, known: Iterable[str]) -> Callable[..., Any]:
  """What `name` says, imported.

  Args:
    field: of the config, for errors.
    known: names that would have been ours.

  Raises:
    ValueError: it says no module and function, or there is no such function.
  """
  module, colon, attribute = name.partition(":")
  if not colon:
    ours = ", ".join(known)
    raise ValueError(f"{field}: {name!r} is unknown; known: {ours}, or package.module:function")
  try:
    found = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f"{field}: {name!r} cannot be imported: {error}") from error
  if not callable(found):
    raise ValueError(f"{field}: {name!r} must be a function")
  return found
