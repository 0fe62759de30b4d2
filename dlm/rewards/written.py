"""What a reward is told of a completion."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Written:
  """A completion, what it answers, and how it came to be.

  Args:
    prompt, text: without special tokens.
    answer: what the data has in its place; "" if nothing.
    whole: of an answer behind tools, all of the row behind the prompt: thoughts, calls, responses
      and the answer, as text; else the answer. `text` is the answer alone, `when` of all tokens
      that the model wrote.
    when: the forward of its row that wrote each token, from 1; -1: it is not known.
    ended: with a stop id.
  """

  prompt: str
  text: str
  answer: str = ""
  when: tuple[int, ...] = ()
  ended: bool = True
  whole: str = ""

  @property
  def tokens(self) -> int:
    return len(self.when)

  @property
  def forwards(self) -> int:
    """Those that wrote a token."""
    return len({*self.when} - {-1})

  @property
  def tokens_per_forward(self) -> float:
    return self.tokens / self.forwards if self.forwards else 0.0
