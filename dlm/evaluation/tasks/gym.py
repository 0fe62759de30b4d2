"""Graders of reasoning-gym's tasks: its own scorers, of which only a full score counts.

The default score gives text that holds the answer a part, so that and less is wrong here. Some of
the scorers run what they are given as code: those are refused, or see plain arithmetic alone.
"""

import re

from dlm.data.sources.example import Example

RUNS_CODE = (
  "intermediate_integration", "n_queens", "polynomial_multiplication", "simple_integration",
  "string_insertion",
)  # fmt: skip
RUNS_ARITHMETIC = ("binary_matrix", "countdown", "puzzle24", "spiral_matrix")
# Powers are left out: a number of them may take for ever.
ARITHMETIC = re.compile(r"(?!.*\*\s*\*)[\d\s+*/().,\[\]-]*", re.DOTALL)
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def grade(example: Example, text: str) -> float:
  """1.0 if a text, or what it says last between <answer> tags, scores 1; else 0.0."""
  item = example.meta["item"]
  answer = (TAGGED.findall(text) or [text])[-1].strip()
  if item.task in RUNS_ARITHMETIC and not ARITHMETIC.fullmatch(answer):
    return 0.0
  try:
    score = item.dataset.score_answer(answer, item.entry)
  except Exception:  # a scorer that fails over a text does not find it right
    return 0.0
  return float(score >= 1)


def check(example: Example) -> None:
  """ValueError where right answers cannot be told from wrong ones."""
  item = example.meta["item"]
  if item.task in RUNS_CODE:
    raise ValueError(f"reasoning_gym: {item.task} is not graded: its scorer runs answers as code")
  if not grade(example, example.completion):
    raise ValueError(f"reasoning_gym: {item.task} does not take its own answer for right")
  if grade(example, "zzz"):
    raise ValueError(f"reasoning_gym: {item.task} takes any text for right")
