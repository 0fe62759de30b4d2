"""Programs as answers: what they are worth is what their tests say."""

import re

from dlm.rewards import bounded
from dlm.rewards.written import Written

FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program(written: Written) -> float:
  """1.0 if the program passes the tests that the data has as its answer; else 0.0.

  The program is the text's first fenced block, else all of it. Model-written code runs, within the
  bounds of `dlm.rewards.bounded`: no wall against hostile programs.

  Raises:
    ValueError: the data have no tests, which any program would pass.
  """
  if not written.answer.strip():
    raise ValueError("program: the data's answer must be tests, such as assertions")
  found = FENCE.search(written.text)
  text = found[1] if found else written.text
  # An empty line between: no open `if` and no "\\" at the end takes the first test for its own.
  return float(bounded.passes(f"{text}\n\n{written.answer}\n"))
