"""Programs are worth what their tests say, and a test that does not run says nothing."""

import numpy as np
import pytest

from dlm.rewards import scores
from dlm.rewards.written import Written

TESTS = "assert double(2) == 4\nassert double(0) == 0"
RIGHT = "def double(x):\n  return 2 * x"


def test_programs_that_pass_all_tests_are_right():
  texts = [RIGHT, f"Like this:\n```python\n{RIGHT}\n```\nand so on", f"{RIGHT} + 1"]
  rows = [Written("", text, TESTS) for text in texts]
  assert scores("program", rows, seconds=60) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("end", ["if False: \\", "raise SystemExit", "x = '''"])
def test_no_test_is_passed_by_leaving_it_out(end):
  row = Written("", f"{RIGHT} + 1\n{end}", "assert double(2) == 4")
  assert scores("program", [row], seconds=60) == [0.0]


def test_a_program_that_hangs_or_has_no_tests_costs_its_row():
  rows = [Written("", "while True: pass", TESTS), Written("", RIGHT, " ")]
  assert np.isnan(scores("program", rows, seconds=0.5)).all()
