"""Packages that the core does without, imported where they are used."""

import importlib
from types import ModuleType


def require(module: str, extra: str = "data") -> ModuleType:
  """Imports `module`, or says how to get it: the extra of setup.cfg that brings it."""
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{module} cannot be imported ({error}); install it with: pip install 'dlm[{extra}]'"
    ) from error
