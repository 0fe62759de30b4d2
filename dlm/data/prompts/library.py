"""Questions about the standard library: its functions, docstrings and the language reference."""

import ast
import functools
import random
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from dlm.data.sources import stdlib
from dlm.data.stateless import hash_text

SHORTEST, LONGEST = 60, 700  # characters that are quoted

ABOUT = {
  "function": (
    "Explain what this function does.\n\n```python\n{text}\n```",
    "Write a docstring for this function.\n\n```python\n{text}\n```",
    "List the arguments of this function and what each is for.\n\n```python\n{text}\n```",
    "Translate the names in this code into plain English.\n\n```python\n{text}\n```",
    "What could go wrong when this function is called?\n\n```python\n{text}\n```",
    "Write a test for this function.\n\n```python\n{text}\n```",
    "Walk through this code line by line.\n\n```python\n{text}\n```",
    "Suggest a better name for this function, and say why.\n\n```python\n{text}\n```",
    "How would you make this code easier to read?\n\n```python\n{text}\n```",
    "What does `{name}` return?\n\n```python\n{text}\n```",
  ),
  "docstring": (
    "Summarise in one sentence:\n\n{text}",
    "Explain to a beginner what `{name}` is for. Its documentation says:\n\n{text}",
    "Write a Python function with this docstring:\n\n{text}",
    "Give an example of how to use `{name}`:\n\n{text}",
    "Rewrite this in simple words:\n\n{text}",
    "Ask three questions about this text:\n\n{text}",
    "What are the key words of this text?\n\n{text}",
    "Write a short manual page for `{name}`. It does this:\n\n{text}",
  ),
  "passage": (
    "Continue:\n\n{text}",
    "Summarise this paragraph:\n\n{text}",
    "Explain this paragraph to someone who has just begun to program:\n\n{text}",
    "Turn this paragraph into a list of points:\n\n{text}",
    "Write one question that this paragraph answers, and the answer:\n\n{text}",
    "What is the most important sentence here, and why?\n\n{text}",
    "Say the same in other words:\n\n{text}",
    "Give a code example for what is said here:\n\n{text}",
  ),
  "name": (
    "What is `{name}` in Python used for?",
    "Show a short example with `{name}`.",
    "When should I use `{name}`, and when not?",
    "What do I have to know before I use `{name}`?",
    "Guess from its name alone what `{name}` does.",
  ),
}


class Subject(NamedTuple):
  kind: str  # of ABOUT
  name: str
  text: str
  group: str  # all of a group are held out, or none


def questions(seed: int) -> Iterator[tuple[str, str]]:
  """(question, group) of every subject with every template, in an order of the seed."""
  found = [(subject, ask) for subject in subjects() for ask in ABOUT[subject.kind]]
  random.Random(hash_text(f"library {seed}")).shuffle(found)
  for subject, ask in found:
    yield ask.format(name=subject.name, text=subject.text), subject.group


@functools.lru_cache
def subjects() -> tuple[Subject, ...]:
  """In a fixed order. What several modules say belongs to the first of them, and to its split."""
  found: dict[tuple[str, str], Subject] = {}
  for subject in _subjects():
    found.setdefault((subject.kind, subject.text or subject.name), subject)
  return tuple(found.values())


def _subjects() -> Iterator[Subject]:
  for name, text in stdlib.topics():
    for part in map(_unindented, text.split("\n\n")):
      if _fits(part) and part[-1] in ".:" and part.count(" ") > 8:
        yield Subject("passage", name, part, f"topic {name}")
  for module, text in stdlib.modules():
    group = stdlib.group_of(module)
    lines, tree = text.splitlines(), ast.parse(text)
    yield Subject("name", module, "", group)
    for name, node in _definitions(module, tree):
      if any(part.startswith("_") for part in name.split(".")):
        continue
      code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
      told = (ast.get_docstring(node) or "").partition("\n\n")[0]
      yield Subject("name", name, "", group)
      if not isinstance(node, ast.ClassDef) and _fits(code) and code.count("\n") > 1:
        yield Subject("function", name, code, group)
      if _fits(told):
        yield Subject("docstring", name, told, group)


def _definitions(name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
  """Classes, functions and methods below a module, with their dotted names."""
  for child in node.body:
    if isinstance(child, stdlib.DEFINITIONS):
      yield f"{name}.{child.name}", child
    if isinstance(child, ast.ClassDef):
      yield from _definitions(f"{name}.{child.name}", child)


def _fits(text: str) -> bool:
  return SHORTEST <= len(text) <= LONGEST


def _unindented(text: str) -> str:
  return textwrap.dedent(text).strip()
