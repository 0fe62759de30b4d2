"""Candidates of several samples -> the tokens that lines of equal structure agree on."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dlm.difftester.languages import Parse
from dlm.difftester.trees import Node, Shape, merge, shape_of, shared

TRIVIAL = set("0123456789,[](){}'\"")


@dataclasses.dataclass(frozen=True)
class Line:
  """Characters `first` on of a sample's text."""

  sample: int
  first: int
  text: str


def agreed(
  tokens_BxL: np.ndarray,
  masked_BxL: np.ndarray,
  *,
  spell: Callable[[int], str],
  parse: Parse,
  language: str,
) -> np.ndarray:
  """Bool [B, L]: masked tokens whose every character some other line of code confirms.

  DiffTester, arXiv 2509.24975; unlike in its code a line ends at a newline, within a token too, and
  never runs on into the next sample. Lines stand between a fence "```language" and the next "```".

  Args:
    tokens_BxL: every sample's row with its candidates where it is masked.
    spell: one id as text. Ids that spell part of a character are never released.
  """
  spelled = [[spell(int(token)) for token in row] for row in tokens_BxL]
  owner = [np.repeat(np.arange(len(row)), [len(text) for text in row]) for row in spelled]
  confirmed = [np.zeros(len(places), bool) for places in owner]
  lines = []
  for sample, row in enumerate(spelled):
    for line in code_lines(sample, "".join(row), language):
      places = owner[sample][line.first : line.first + len(line.text)]
      if masked_BxL[sample][places].any():
        lines.append(line)
  for shape, members in groups(lines, parse):
    for line, node in members:
      here = confirmed[line.sample][line.first : line.first + len(line.text)]  # a view
      here |= np.array([character.isspace() for character in line.text])
      for leaf in shared(shape, node):
        here[leaf.start : leaf.end] = True
  released_BxL = np.zeros_like(masked_BxL)
  for sample, row in enumerate(spelled):
    doubted = np.bincount(owner[sample], ~confirmed[sample], minlength=len(row)) > 0
    visible = np.array([bool(text.strip()) for text in row])
    released_BxL[sample] = masked_BxL[sample] & visible & ~doubted
  return released_BxL


def code_lines(sample: int, text: str, language: str) -> list[Line]:
  """Lines within fences, their newline included."""
  lines, first, inside = [], 0, False
  for line in text.split("\n"):
    if "```" in line:
      inside = not inside and f"```{language}" in line
    elif inside:
      lines.append(Line(sample, first, text[first : first + len(line) + 1]))
    first += len(line) + 1
  return lines


def groups(lines: list[Line], parse: Parse) -> list[tuple[Shape, list[tuple[Line, Node]]]]:
  """Lines by common shape, each put to the first group it has something in common with."""
  found: list[tuple[Shape, list[tuple[Line, Node]]]] = []
  for line in lines:
    node = None if set("".join(line.text.split())) <= TRIVIAL else parse(line.text)
    if node is None or not (shape := shape_of(node)).says_something():
      continue
    for i, (group, members) in enumerate(found):
      both = merge(group, shape)
      if both is not None and both.says_something():
        found[i] = (both, [*members, (line, node)])
        break
    else:
      found.append((shape, [(line, node)]))
  return [group for group in found if len(group[1]) > 1]
