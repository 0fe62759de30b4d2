"""Programs as answers: what they are worth is what their tests say."""

import re

from dlm.rewards import bounded
from dlm.rewards.written import Written

FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def blocks(text: str) -> list[str]:
  """The fenced blocks of a text, as OpenCompass finds them: closed ones. Without any, the text."""
  return [block.lstrip() for block in FENCED.findall(text) or [text]]


def program(written: Written) -> float:
  """1.0 if the program passes the tests that the data has as its answer; else 0.0.

  The program is the first of the text's `blocks`. Model-written code runs, within the bounds of
  `dlm.rewards.bounded`: no wall against hostile programs.

  Raises:
    ValueError: the data have no tests, which any program would pass.
  """
  if not written.answer.strip():
    raise ValueError("program: the data's answer must be tests, such as assertions")
  text = blocks(written.text)[0]
  # An empty line between: no open `if` and no "\\" at the end takes the first test for its own.
  return float(bounded.passes(f"{text}\n\n{written.answer}\n"))
