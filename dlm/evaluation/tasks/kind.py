"""How problems of a source are asked and graded."""

import dataclasses
from collections.abc import Callable

from dlm.data import Example


@dataclasses.dataclass(frozen=True)
class Kind:
  """How problems of a source are asked and graded.

  Args:
    grade: a text's score in [0, 1].
    message: to a chat model, and reply: what it answers in a worked example. All forms may name
      fields of the example's `meta`.
    text: to be continued, and answer: what a worked example says then.
    end: of an answer, in a text.
    check: ValueError where an example cannot be graded.
    stops: what ends an answer in a text; None: `end` does, and blanks about it do not count.
    continued: the score of what continues a text, if it is another one than `grade`.
    program: that a text holds, with its tests, and the reference's; None: the answer is no program.
      Its last argument says whether it is a chat model's answer.
  """

  grade: Callable[[Example, str], float]
  message: str
  text: str
  answer: str
  end: str
  check: Callable[[Example], None] = lambda example: None
  stops: tuple[str, ...] | None = None
  continued: Callable[[Example, str], float] | None = None
  program: Callable[[Example, str, bool], tuple[str, str]] | None = None
  reply: str = "{completion}"
