"""A line of code -> its syntax tree, the line taken alone.

Python is parsed by its own `ast`, so a line must be whole: a statement, or the head of one. Java
and C++ are parsed by tree-sitter, which makes the best of what it is given.
"""

import ast
import functools
import importlib
import io
import keyword
import tokenize
import warnings
from collections.abc import Callable, Iterator

from dlm.difftester.trees import LITERAL, Node

Parse = Callable[[str], Node | None]  # a line -> its tree; None: not code, or nothing in it

# What makes a statement of a line that is none: an empty body, or the clause that it continues.
COMPLETIONS = (
  ("", ""),
  ("", " pass"),  # if, for, while, with, def, class
  ("if x:\n pass\n", " pass"),  # elif, else
  ("try:\n pass\n", " pass"),  # except, finally
  ("", "\n pass\nfinally: pass"),  # try
  ("match x:\n ", " pass"),  # case
  ("", "\ndef f(): pass"),  # decorators
)
LITERALS = {"Constant", "JoinedStr", "TemplateStr"}
CONSTANTS = {"None", "True", "False"}


def python(line: str) -> Node | None:
  """The line's `ast`, with its keywords, names and signs as leaves."""
  code = line.strip()
  for before, behind in COMPLETIONS:
    source = before + code + behind
    tree = _parsed(source)
    if code and tree is not None:
      first = len(before.rpartition("\n")[2])
      place = _Place(source, before.count("\n") + 1, first, len(code), line.index(code[0]))
      return _python_node(tree, place, place.leaves(), (place.indent, place.indent + len(code)))
  return None


def _parsed(source: str) -> ast.Module | None:
  with warnings.catch_warnings(action="ignore"):  # of strange escapes in literals
    try:
      return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      return None


class _Place:
  """Where a line stands in its completion: from places in the source to those in the line."""

  def __init__(self, source: str, row: int, first: int, width: int, indent: int):
    self.source, self.row, self.first, self.width, self.indent = source, row, first, width, indent
    self._bytes = source.split("\n")[row - 1].encode()

  def character(self, row: int, byte: int) -> int:
    """Of the line, for a place that `ast` gives; outside the line its nearer end."""
    if row != self.row:
      return self.indent + (self.width if row > self.row else 0)
    column = len(self._bytes[:byte].decode())
    return self.indent + min(max(column - self.first, 0), self.width)

  def leaves(self) -> list[Node]:
    found = []
    for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
      (row, start), (_, end) = token.start, token.end
      start, end = start - self.first, end - self.first
      if row == self.row and start >= 0 and end <= self.width:
        if token.string in CONSTANTS:
          found.append(Node(LITERAL, self.indent + start, self.indent + end))
        elif token.type in (tokenize.NAME, tokenize.OP):
          named = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
          kind = "name" if named else token.string
          found.append(Node(kind, self.indent + start, self.indent + end, token.string))
    return found


def _python_node(node: ast.AST, place: _Place, leaves: list[Node], span: tuple[int, int]) -> Node:
  """The node, its children in order: nodes of `ast`, and the leaves between them."""
  kind = type(node).__name__
  start, end = span
  if kind in LITERALS:
    return Node(LITERAL, start, end)
  leaves = [leaf for leaf in leaves if start <= leaf.start and leaf.end <= end]
  parts = [
    _python_node(child, place, leaves, inner)
    for child in _placed(node)
    if (inner := _span(child, place))[0] < inner[1]
  ]
  between = [
    leaf for leaf in leaves if not any(p.start <= leaf.start and leaf.end <= p.end for p in parts)
  ]
  return Node(kind, start, end, children=tuple(sorted(parts + between, key=lambda n: n.start)))


def _placed(node: ast.AST) -> Iterator[ast.AST]:
  """Children that have a place; instead of others (`arguments`, operators) theirs."""
  for child in ast.iter_child_nodes(node):
    if hasattr(child, "lineno"):
      yield child
    else:
      yield from _placed(child)


def _span(node: ast.AST, place: _Place) -> tuple[int, int]:
  firsts = [node, *getattr(node, "decorator_list", ())]  # decorators stand before their `def`
  start = min(place.character(first.lineno, first.col_offset) for first in firsts)
  return start, place.character(node.end_lineno, node.end_col_offset)


@functools.cache
def tree_sitter_of(language: str) -> Parse:
  """A parser of tree-sitter's; ModuleNotFoundError with an install hint where it is absent."""
  try:
    tree_sitter = importlib.import_module("tree_sitter")
    grammar = importlib.import_module(f"tree_sitter_{language}")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"difftester: {language} needs {error.name}: pip install 'dlm[difftester]'", name=error.name
    ) from error
  parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))

  def parse(line: str) -> Node | None:
    code = line.encode()
    root = _node(parser.parse(code).root_node, code)
    return root if root.children else None

  return parse


def _node(node, code: bytes) -> Node:
  """A tree-sitter node; its places are bytes, ours characters."""
  start, end = (len(code[:byte].decode()) for byte in (node.start_byte, node.end_byte))
  if node.is_error or _is_literal(node.type):
    return Node(LITERAL, start, end)
  if not node.children:
    return Node(node.type, start, end, code[node.start_byte : node.end_byte].decode())
  children = [_node(child, code) for child in node.children if child.start_byte < child.end_byte]
  return Node(node.type, start, end, children=tuple(children))


def _is_literal(kind: str) -> bool:
  words = set(kind.split("_"))
  return bool(words & {"literal", "comment", "true", "false", "null", "nullptr", "none"})


def parser_of(language: str) -> Parse:
  """Raises ValueError for a language that is not known."""
  if language == "python":
    return python
  if language in ("java", "cpp"):
    return tree_sitter_of(language)
  raise ValueError(f"difftester: language={language!r} is not one of python, java, cpp")
