"""Graders of puzzles as ParallelBench (2510.04767) defines them: what counts as a right answer."""

import itertools
import re
from collections.abc import Sequence

from dlm.evaluation.tasks.lists import parse_list


def latin_square(text: str, symbols: Sequence[str]) -> bool:
  """Is there a Latin square over `symbols` in comma-separated lines of a text?

  Lines that hold other symbols are passed over; of the rest the first len(symbols) count. As in the
  authors' code, a field too many is no fault if it repeats a symbol of its line.
  """
  wanted, rows = set(symbols), []
  for line in text.split("\n"):
    cells = [cell.strip() for cell in line.split(",")]
    if set(cells) == wanted:
      rows.append(cells)
  rows = rows[: len(wanted)]
  columns = zip(*rows, strict=False)
  return len(rows) == len(wanted) and all(set(column) == wanted for column in columns)


def sudoku(text: str, answer: str, strict: bool = False) -> bool:
  """Is the 4x4 grid of a text that of `answer`? Strict: four lines of four digits, nothing else."""
  grid = sudoku_grid(text, strict)
  return grid is not None and grid == sudoku_grid(answer, strict=True)


def sudoku_grid(text: str, strict: bool = False) -> list[str] | None:
  """Four lines of four digits. Lenient: lines with another number of digits are passed over."""
  lines = [line.strip() for line in text.split("\n") if line.strip()]
  if not strict:
    lines = ["".join(re.findall(r"\d", line)) for line in lines]
    lines = [line for line in lines if len(line) == 4]
  right = len(lines) == 4 and all(len(line) == 4 and line.isdecimal() for line in lines)
  return lines if right else None


def domino(text: str, length: int, start: int, strict: bool = False) -> bool:
  """`length` numbers of 11 to 99, `start` first, each beginning with the last digit before it.

  Lenient: all numbers of a text. Strict: they are the items of a list in its exact form.
  """
  if strict:
    numbers = [_integer(item) for item in parse_list(text, strict=True) or ()]
  else:
    numbers = [int(item) for item in re.findall(r"\d+", text)]
  return (
    len(numbers) == length
    and None not in numbers
    and numbers[0] == start
    and all(10 < number < 100 for number in numbers)
    and all(a % 10 == b // 10 for a, b in itertools.pairwise(numbers))
  )


def arithmetic(text: str, result: int, strict: bool = False) -> bool:
  """Lenient: the result's digits stand somewhere in a text. Strict: they are all of it."""
  text = text.replace(",", "").strip()
  if not strict:
    return str(result) in text
  return _integer(text) == result


def _integer(text: str) -> int | None:
  try:
    return int(text)
  except ValueError:
    return None
