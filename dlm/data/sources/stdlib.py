"""English and code that every CPython carries: no download.

"topics" is the language reference as `help()` shows it (`pydoc_data.topics`, about 0.5 MB),
"docstrings" those of the public standard library (0.9 MB), "source" its functions and classes
(about 4 MB). The text differs a little between Python versions, and with it every number measured
on it: compare runs of one version only.
"""

import ast
import functools
import hashlib
import pathlib
import sys
import sysconfig
from collections.abc import Iterator

from dlm.data.sources.example import Documents, Example, check_split, split_of

KINDS = ("topics", "docstrings", "source")
# Jokes, vendored tools and the topics themselves.
_LEFT_OUT = ("antigravity", "this", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data")
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.lru_cache
def documents(include: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
  """(name, text, split) of every document, in a fixed order, no text twice.

  All documents of a module share its split, so a function held out is not taught by its docstring.
  """
  if not include or set(include) - set(KINDS):
    raise ValueError(f"stdlib: {include=} must name some of: {', '.join(KINDS)}")
  seen, kept = set(), []
  for group, name, text in _every_document(include):
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest()
    if text.strip() and digest not in seen:
      seen.add(digest)
      kept.append((name, text, split_of(group)))
  return tuple(kept)


def read_stdlib(split: str, *, include: tuple[str, ...] = ("topics", "docstrings")) -> Documents:
  check_split(split)
  found = [Example("", text) for _, text, where in documents(tuple(include)) if where == split]
  return Documents("stdlib", tuple(found))


def _every_document(include: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
  """(group, name, text): topics first, then module by module."""
  if "topics" in include:
    for name, text in topics():
      yield f"topic {name}", f"topic {name}", text + "\n"
  if include == ("topics",):
    return
  for module, text in modules():
    tree = ast.parse(text)
    if "docstrings" in include:
      yield group_of(module), f"docstrings {module}", _docstrings(module, tree)
    if "source" in include:
      lines = text.split("\n")
      for node in tree.body:
        if isinstance(node, DEFINITIONS):
          yield group_of(module), f"source {module}.{node.name}", _code(lines, node) + "\n"


def _code(lines: list[str], node: ast.AST) -> str:
  """As ast.get_source_segment has it of a module's own, which cuts all lines anew for each."""
  *whole, last = lines[node.lineno - 1 : node.end_lineno]
  return "\n".join([*whole, last.encode()[: node.end_col_offset].decode()])


def topics() -> Iterator[tuple[str, str]]:
  """Name and text of each topic."""
  from pydoc_data.topics import topics

  for name in sorted(topics):
    yield name, topics[name].strip()


def group_of(module: str) -> str:
  """What decides its split."""
  return f"module {module}"


def modules() -> Iterator[tuple[str, str]]:
  """Name and source of each public module that is written in Python."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  for name in sorted(sys.stdlib_module_names):
    if name.startswith("_") or name in _LEFT_OUT:
      continue
    for path in (root / f"{name}.py", root / name / "__init__.py"):
      if path.is_file():
        yield name, path.read_text(encoding="utf-8")


def _docstrings(name: str, node: ast.AST) -> str:
  """The docstrings of a module, each below the dotted name of its owner."""
  own = ast.get_docstring(node)
  parts = [f"{name}\n\n{own}\n"] if own else []
  for child in node.body:
    if isinstance(child, DEFINITIONS):
      parts.append(_docstrings(f"{name}.{child.name}", child))
  return "\n".join(part for part in parts if part)
