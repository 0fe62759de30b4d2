"""Tasks of the package reasoning-gym as rewards: its scorers, of which only a full score counts.

Of a row the prompt and the data's answer are known, not what else the package stores of an item. So
only tasks are here whose scorers need no more, run nothing, give their own answers 1 and wrong ones
less. Others, such as countdown and sudoku, have rewards of their own.
"""

import functools
from collections.abc import Callable

from dlm.data.install import require
from dlm.rewards.formats import last_answer
from dlm.rewards.written import Written

TASKS = (
  "base_conversion", "basic_arithmetic", "binary_alternation", "caesar_cipher", "chain_sum",
  "count_bits", "decimal_chain_sum", "gcd", "lcm", "leg_counting", "letter_counting", "maze",
  "modulo_grid", "number_sequence", "products", "rotate_matrix", "simple_equations",
  "string_manipulation", "word_sequence_reversal",
)  # fmt: skip


@functools.cache
def of_task(name: str) -> Callable[[Written], float]:
  """1.0 where the text, or what it says last between <answer> tags, scores 1; else 0.0.

  Raises:
    ValueError: the task is none of `TASKS`.
    ModuleNotFoundError: how to install the package.
  """
  if name not in TASKS:
    raise ValueError(f"rewards: 'reasoning_gym:{name}' is unknown; known: {', '.join(TASKS)}")
  dataset = require("reasoning_gym", "tasks").create_dataset(name, seed=0, size=1)

  def score(written: Written) -> float:
    answer = last_answer(written.text)
    item = {"question": written.prompt, "answer": written.answer.strip(), "metadata": {}}
    return float(dataset.score_answer(answer, item) >= 1)

  return score
