"""A config's tables, checked strictly: known fields, known names, values of the annotated type."""

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dlm.diffusion.schedules import SCHEDULES, MaskSchedule


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as dicts, tuples and scalars: a ConfigDict, or what a config.json holds."""
  return _frozen(json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config)))


def table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """The table `name` of a config; empty where the config has none."""
  fields = config.get(name, {})
  if not isinstance(fields, Mapping):
    raise ValueError(f"{name}={fields!r} must be a table of fields")
  return fields


def one_of(field: str, value: Any, known: Iterable[str]) -> None:
  """ValueError where a word is not one of the known ones."""
  if value not in known:
    raise ValueError(f"{field}={value!r} is unknown; known: {', '.join(known)}")


def named(field: str, name: Any, table: Mapping[str, Any]) -> Any:
  """The entry of a name table; an unknown name lists the known ones."""
  one_of(field, name, sorted(table))
  return table[name]


def call(
  table: str, make: Callable, given: Mapping[str, Any], *, also: tuple[str, ...] = (), **fixed: Any
) -> Any:
  """`make(**given, **fixed)`, once the names and types of `given` are those of its parameters."""
  parameters = inspect.signature(make).parameters.values()
  fields = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in fixed]
  known(table, given, [p.name for p in fields] + [*also])
  missing = [p.name for p in fields if p.default is p.empty and p.name not in given]
  if missing:
    raise ValueError(f"{table}.{missing[0]} is missing")
  _check_types(table, make, given)
  return make(**given, **fixed)


def known(table: str, given: Mapping[str, Any], fields: list[str]) -> None:
  for name in given:
    if name not in fields:
      raise ValueError(f"{table}.{name} is unknown; known: {', '.join(sorted(fields))}")


def schedule(field: str, given: str | Mapping[str, Any]) -> MaskSchedule:
  """A noise schedule by name, or {"name": ..., and its own fields}."""
  given = {"name": given} if isinstance(given, str) else dict(given)
  make = named(field, given.pop("name", None), SCHEDULES)
  return call(field, make, given, also=("name",))


def _check_types(table: str, make: Callable, given: Mapping[str, Any]) -> None:
  hints = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
  for name, value in given.items():
    if name in hints and not _fits(value, hints[name]):
      kind = getattr(hints[name], "__name__", str(hints[name]))
      raise ValueError(f"{table}.{name}={value!r} must be of type {kind}")


def _fits(value: Any, hint: Any) -> bool:
  """Is `value` of the annotated type? Only scalars, tuples and unions of them are looked into."""
  origin = typing.get_origin(hint)
  if origin in (types.UnionType, typing.Union):
    return any(_fits(value, part) for part in typing.get_args(hint))
  if hint is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if hint in (bool, str, type(None)):
    return isinstance(value, hint)
  return not (hint is tuple or origin is tuple) or isinstance(value, tuple)


def _frozen(value: Any) -> Any:
  """JSON's lists as tuples again, so that what is built of them is hashable."""
  if isinstance(value, Mapping):
    return {key: _frozen(part) for key, part in value.items()}
  return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value
