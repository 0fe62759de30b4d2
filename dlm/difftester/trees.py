"""Syntax trees of single lines, and the shape that several of them share."""

import dataclasses
from collections.abc import Iterator

LITERAL = "literal"  # numbers, strings, truth values, comments, what cannot be parsed: never shared


@dataclasses.dataclass(frozen=True)
class Node:
  """Characters `start` to `end` of a line; a leaf has a text and no children."""

  kind: str
  start: int
  end: int
  text: str | None = None
  children: tuple["Node", ...] = ()


@dataclasses.dataclass(frozen=True)
class Shape:
  """What lines have in common: a leaf they all spell alike, a node, or a hole (neither)."""

  kind: str
  text: str | None = None
  children: tuple["Shape", ...] = ()

  @property
  def hole(self) -> bool:
    return self.text is None and not self.children

  def says_something(self) -> bool:
    return self.text is not None or any(child.says_something() for child in self.children)


def shape_of(node: Node) -> Shape:
  if node.kind == LITERAL:
    return Shape(LITERAL)
  return Shape(node.kind, node.text, _trimmed([shape_of(child) for child in node.children]))


def merge(a: Shape, b: Shape) -> Shape | None:
  """What both say, None where their kinds differ.

  Children are compared in pairs from the left, up to the first two of different kinds. What is
  spelled differently, and literals, become holes.
  """
  if a.kind != b.kind:
    return None
  children = []
  for one, other in zip(a.children, b.children, strict=False):
    both = merge(one, other)
    if both is None:
      break
    children.append(both)
  return Shape(a.kind, a.text if a.text == b.text else None, _trimmed(children))


def shared(shape: Shape, node: Node) -> Iterator[Node]:
  """Leaves of a line that its group's shape holds."""
  if shape.text is not None:
    yield node
  for part, child in zip(shape.children, node.children, strict=False):
    yield from shared(part, child)


def _trimmed(children: list[Shape]) -> tuple[Shape, ...]:
  while children and children[-1].hole:
    children = children[:-1]
  return tuple(children)
