"""What is parsed of an answer, and what is not: it is a model's text, not a program."""

import pytest

from dlm.rewards import REWARDS
from dlm.rewards.puzzles import countdown_score
from dlm.rewards.written import Written


@pytest.mark.parametrize(
  ("answer", "numbers"),
  [
    ("9**9**9**9", [9, 9, 9, 9]),
    ("((9**999)**999)**999", [9, 999, 999, 999]),
    ("0**-1", [0, 1]),
    ("(" * 500 + "1" + ")" * 500, [1]),
    ("1(2)", [1, 2]),
    ("1.5.2", [1, 5, 2]),
  ],
)
def test_what_would_take_for_ever_or_is_no_arithmetic_is_wrong(answer, numbers):
  assert countdown_score(f"<answer>{answer}</answer>", numbers, 1e9) == 0.1


def test_a_puzzle_is_read_from_its_prompt():
  countdown = Written("Make of 3, 5 and 2: 16", "<answer>(3 + 5) * 2</answer>")
  assert REWARDS["countdown"](countdown) == 1.0
  sudoku = Written(
    "Solve 1030341201430301", "<answer>1234341221434321</answer>", "1234 3412 2143 4321"
  )
  assert REWARDS["sudoku"](sudoku) == 1.0
