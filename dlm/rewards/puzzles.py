"""d1's rewards of countdown and 4x4 sudoku (2504.12216); wd1, ESPO and SPG have the same.

Their code evaluates what the model wrote; here it is parsed, and powers are bounded.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from dlm.rewards.written import Written

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
ALLOWED = re.compile(r"[\d+\-*/().\s]*")
CLOSED = 0.1  # a closed answer tag alone
NEAR = 1e-5
LARGEST = 4096  # bits of a power
BINARY: dict[type, Callable] = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.FloorDiv: operator.floordiv,
}


def tagged(text: str) -> str | None:
  """What the last <answer>...</answer> holds; None: there is none."""
  found = TAGGED.findall(text)
  return found[-1].strip() if found else None


def countdown(written: Written) -> float:
  """1.0 if all numbers of the prompt but the last, each once, make the last; 0.1 for any answer.

  0.0 without an answer in tags.
  """
  *numbers, target = map(int, re.findall(r"\d+", written.prompt))
  return countdown_score(written.text, numbers, target)


def countdown_score(text: str, numbers: Sequence[int], target: float) -> float:
  answer = tagged(text)
  if answer is None:
    return 0.0
  if sorted(map(int, re.findall(r"\d+", answer))) != sorted(numbers):
    return CLOSED
  if not ALLOWED.fullmatch(answer):
    return CLOSED
  try:
    value = _value(ast.parse(answer, mode="eval").body)
  except (SyntaxError, ValueError, ArithmeticError, RecursionError):
    return CLOSED
  return 1.0 if abs(value - target) < NEAR else CLOSED


def _value(node: ast.expr) -> Fraction:
  """Of sums, products, quotients and small powers of numbers; ValueError of anything else."""
  match node:
    case ast.Constant(value=int() | float() as value):
      return Fraction(value)
    case ast.UnaryOp(op=ast.UAdd(), operand=operand):
      return _value(operand)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return -_value(operand)
    case ast.BinOp(left=left, op=ast.Pow(), right=right):
      base, exponent = _value(left), _value(right)
      if exponent.denominator != 1:
        raise ValueError(f"exponent {exponent} is no whole number")
      size = max(abs(base.numerator), base.denominator).bit_length()
      if size * abs(exponent) > LARGEST:
        raise ValueError(f"a power of more than {LARGEST} bits")
      return base ** int(exponent)
    case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
      return Fraction(BINARY[type(op)](_value(left), _value(right)))
  raise ValueError(f"{type(node).__name__} is no arithmetic")


def sudoku(written: Written) -> float:
  """The share of the puzzle's empty cells that are right.

  The puzzle is the prompt's last 16 digits, 0 for empty; the data's answer is the solution.
  """
  puzzle = re.findall(r"\d{16}", written.prompt)[-1]
  return sudoku_score(written.text, puzzle, re.sub(r"\D", "", written.answer))


def sudoku_score(text: str, puzzle: str, solution: str) -> float:
  """Of the digits in the answer's tags, filled up to the puzzle's size; givens are not read."""
  digits = re.sub(r"\D", "", tagged(text) or "")
  empty = [i for i, cell in enumerate(puzzle) if cell == "0"]
  if not digits or not empty:
    return 0.0
  digits = digits.ljust(len(puzzle), "0")
  return sum(digits[i] == solution[i] for i in empty) / len(empty)
