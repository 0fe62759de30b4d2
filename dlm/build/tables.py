"""A config's table becomes a frozen dataclass, once: known fields, values of the annotated type.

What a field may hold is said by its annotation alone:

  int, float, bool, str, tuple, None   such a value; numbers are finite
  a dataclass                          a table of its fields
  Named[Policy]                        a table with the name of a policy and fields of that policy
  Partial[ModelConfig]                 a table of some of its fields; the others are known later

A policy inside a policy is a table of the third kind, too, and so is a schedule. The command line
stands above the file: in `--config.policy.band=1e-5` the text is read by the type of the field, and
another name than the file's starts from the defaults of what it names.
"""

import ast
import dataclasses
import math
import runpy
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from typing import Any, Generic, Self, TypeVar

from dlm.build.choices import CHOICES, PRESETS, Choices

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Named(Generic[T]):
  """A T that a table names, with the fields that the table sets."""

  name: str
  kind: Callable[..., T]
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def make(self, **known: Any) -> T:
    """The T. `known`: what is not a config's to say, for every T that has such a field."""
    has = {field.name for field in dataclasses.fields(self.kind)}
    return self.kind(**{n: v for n, v in (known | _made(self.fields, known)).items() if n in has})

  def beside(self) -> dict[str, Any]:
    """The fields that are not of the T (`Choices.beside`)."""
    has = {field.name for field in dataclasses.fields(self.kind)}
    return {name: value for name, value in self.fields.items() if name not in has}


@dataclasses.dataclass(frozen=True)
class Partial(Generic[T]):
  """Some fields of a T."""

  kind: Callable[..., T]
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def make(self, **known: Any) -> T:
    """The T; `known`: fields that the table may leave out."""
    fields = known | _made(self.fields, {})
    for field in dataclasses.fields(self.kind):
      if field.default is MISSING and field.name not in fields:
        raise ValueError(f"{self.kind.__name__}: {field.name} is missing")
    return self.kind(**fields)

  def completed(self) -> "Partial[T]":
    """With the defaults of fields that the table leaves out."""
    fields = {
      field.name: field.default
      for field in dataclasses.fields(self.kind)
      if field.default is not MISSING
    }
    own = {n: v.completed() if isinstance(v, Partial) else v for n, v in self.fields.items()}
    return Partial(self.kind, {**fields, **own})


def _made(fields: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
  return {
    name: value.make(**known) if isinstance(value, Named | Partial) else value
    for name, value in fields.items()
  }


class Config:
  """A frozen dataclass that is read from tables; its defaults are the base of every config file."""

  @classmethod
  def of(cls, table: Any) -> Self:
    """From a dict or a ConfigDict; ValueError where a field, a name or a type is wrong."""
    return table if isinstance(table, cls) else _dataclass("config", cls, plain(table), MISSING)

  @classmethod
  def read(cls, file: str, fields: Iterable[str] = ()) -> Self:
    """From FILE.py or FILE.py:ARGUMENT, and fields as "policy.band=1e-5", which stand above it."""
    return _dataclass("config", cls, plain(_of_file(file)), _tree(fields))


def plain(value: Any) -> Any:
  """A config as dicts, tuples and scalars: what JSON holds, and what `Config.of` takes back."""
  if isinstance(value, Named):
    return {"name": value.name, **plain(value.fields)}
  if isinstance(value, Partial):
    return plain(value.fields)
  if dataclasses.is_dataclass(value):
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  if isinstance(value, list | tuple):
    return tuple(map(plain, value))
  if hasattr(value, "to_dict"):  # of ml_collections
    value = value.to_dict()
  return {name: plain(v) for name, v in value.items()} if isinstance(value, Mapping) else value


def one_of(field: str, value: Any, known: Iterable[str]) -> None:
  """ValueError where a word is not one of the known ones."""
  if value not in known:
    raise ValueError(f"{field}={value!r} is unknown; known: {', '.join(known)}")


def named(field: str, name: Any, table: Mapping[str, T]) -> T:
  """The entry of a name table; an unknown name lists the known ones."""
  one_of(field, name, sorted(table))
  return table[name]


def _of_file(file: str) -> Any:
  path, _, argument = file.partition(":")
  try:
    get_config = runpy.run_path(path).get("get_config")
    if get_config is not None:
      return get_config(*([argument] if argument else []))
  except OSError:
    raise
  except SyntaxError as error:
    at = f"{path}: " if error.lineno is None else f"{error.filename}, line {error.lineno}: "
    raise ValueError(at + error.msg) from error
  except Exception as error:  # of the caller's code
    if argument and isinstance(error, KeyError | TypeError):
      raise ValueError(f"get_config of {path} does not know {argument!r}") from error
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    at = f", line {lines[-1]}" if lines else ""  # none of it ran, where it is no text
    raise ValueError(f"{path}{at}: {type(error).__name__}: {error}") from error
  raise ValueError(f"{path} has no get_config")


def _tree(fields: Iterable[str]) -> dict[str, Any]:
  """["a.b=text"] as {"a": {"b": "text"}}; the last text of a field counts."""
  tree: dict[str, Any] = {}
  for each in fields:
    path, _, text = each.partition("=")
    *above, last = path.split(".")
    table = tree
    for name in above:
      table = table.setdefault(name, {})
      if isinstance(table, str):
        raise ValueError(f"config.{path} is a field of {name}={table!r}, which is set as a whole")
    if isinstance(table.get(last), dict):
      raise ValueError(f"config.{path}={text!r} is set as a whole, and by field")
    table[last] = text
  return tree


# In what follows `at` is a field as the command line names it, `given` what the file says of it and
# `text` what the command line says; MISSING where one says nothing.


@dataclasses.dataclass(frozen=True)
class _Field:
  arms: tuple[Any, ...]  # types that it may be of
  default: Any  # MISSING: it must be given


def _schema(kind: Any) -> dict[str, _Field]:
  hints = typing.get_type_hints(kind)
  return {
    field.name: _Field(
      _arms(hints[field.name]),
      field.default if field.default_factory is MISSING else field.default_factory(),
    )
    for field in dataclasses.fields(kind)
  }


def _dataclass(at: str, kind: type[T], given: Any, text: Any) -> T:
  return kind(**_values(at, _schema(kind), given, text))


def _named(at: str, choices: Choices, given: Any, text: Any, default: Any) -> Named:
  given, text = (_table(at, {"name": x} if isinstance(x, str) else x) for x in (given, text))
  if isinstance(default, Named):
    given = {"name": default.name, **given}
  name = text.get("name", given.get("name"))
  kind = named(f"{at}.name", name, choices.classes)
  if name != given.get("name"):
    given = {}
  schema = {n: field for n, field in _schema(kind).items() if n not in choices.known}
  if choices.beside is not None:
    schema = {**_schema(choices.beside), **schema}
  values = _values(at, {**schema, "name": _Field((str,), name)}, given, text)
  values.pop("name", None)
  return Named(name, kind, values)


def _partial(at: str, kind: type[T], given: Any, text: Any) -> Partial[T]:
  given, text = _table(at, given), _table(at, text)
  schema = {
    name: _Field(tuple(map(_in_part, field.arms)), None) for name, field in _schema(kind).items()
  }
  presets = PRESETS.get(kind, {})
  name = text.get("preset", given.get("preset")) if presets else None
  if name is not None:
    given = _over(plain(named(f"{at}.preset", name, presets)), given)
  if presets:
    schema["preset"] = _Field((str, types.NoneType), None)
  values = _values(at, schema, given, text)
  values.pop("preset", None)
  return Partial(kind, values)


def _in_part(arm: Any) -> Any:
  return Partial[arm] if dataclasses.is_dataclass(arm) else arm


def _over(below: Any, above: Any) -> Any:
  """Tables above tables, field by field; anything else replaces what is below."""
  if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
    return above
  return {**below, **{name: _over(below.get(name), value) for name, value in above.items()}}


def _values(at: str, schema: Mapping[str, _Field], given: Any, text: Any) -> dict[str, Any]:
  """The fields that are given, each of its type."""
  given, text = _table(at, given), _table(at, text)
  for name in (*given, *text):
    if name not in schema:
      raise ValueError(f"{at}.{name} is unknown; known: {', '.join(sorted(schema))}")
  for name, field in schema.items():
    if field.default is MISSING and name not in given and name not in text:
      raise ValueError(f"{at}.{name} is missing")
  return {
    name: _value(f"{at}.{name}", field, given.get(name, MISSING), text.get(name, MISSING))
    for name, field in schema.items()
    if name in given or name in text
  }


def _value(at: str, field: _Field, given: Any, text: Any) -> Any:
  arms = field.arms
  said = given if text is MISSING else _literal(text, arms)
  if types.NoneType in arms:
    if said is None:
      return None
    given = MISSING if given is None else given  # and the command line makes a table of it
  for arm in arms:
    if typing.get_origin(arm) is Named or arm in CHOICES:
      choices = CHOICES[(*typing.get_args(arm), arm)[0]]
      return _named(at, choices, given, text, field.default)
    if typing.get_origin(arm) is Partial:
      return _partial(at, *typing.get_args(arm), given, text)
    if dataclasses.is_dataclass(arm):
      return _dataclass(at, arm, given, text)
  if not _finite(said):
    raise ValueError(f"{at}={said!r} must be finite")
  if not any(_fits(said, arm) for arm in arms):
    kinds = " | ".join("None" if arm is types.NoneType else _name(arm) for arm in arms)
    raise ValueError(f"{at}={said!r} must be of type {kinds}")
  return float(said) if type(said) is int and int not in arms else said


def _table(at: str, value: Any) -> Mapping[str, Any]:
  if value is MISSING:
    return {}
  if not isinstance(value, Mapping):
    raise ValueError(f"{at}={value!r} must be a table of fields")
  return value


def _literal(text: Any, arms: tuple[Any, ...]) -> Any:
  """What a text says of a field of one of these types; where it says nothing such, the text."""
  if not isinstance(text, str):
    return text
  if types.NoneType in arms and text == "None":
    return None
  if bool in arms and text.lower() in ("true", "false"):
    return text.lower() == "true"
  if str in arms:
    return text
  try:
    return plain(ast.literal_eval(text))
  except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last: nested too deep
    return text


def _name(arm: Any) -> str:
  return arm.__name__ if isinstance(arm, type) and not typing.get_args(arm) else str(arm)


def _arms(hint: Any) -> tuple[Any, ...]:
  """The types that an annotation allows."""
  union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  return typing.get_args(hint) if union else (hint,)


def _finite(value: Any) -> bool:
  if isinstance(value, tuple):
    return all(map(_finite, value))
  return not isinstance(value, float) or math.isfinite(value)


def _fits(value: Any, arm: Any) -> bool:
  """Is `value` of the type? A bool is no number, an int is a float."""
  if isinstance(value, bool):
    return arm in (bool, Any)
  if arm is float:
    return isinstance(value, int | float)
  if typing.get_origin(arm) is not tuple:
    return arm is Any or isinstance(value, arm)
  of = typing.get_args(arm)
  if not isinstance(value, tuple):
    return False
  if of[-1] is ...:
    return all(_fits(each, of[0]) for each in value)
  return len(of) == len(value) and all(map(_fits, value, of))
