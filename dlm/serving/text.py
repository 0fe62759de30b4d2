"""Text of tokens that come bit by bit: only what no later token can change is given out."""

from collections.abc import Sequence

from dlm.data import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes that end inside a character decode to


class TextStream:
  """Final tokens in, text out: whole characters, and nothing that may begin a stop string.

  What it gives out, joined, is a beginning of the text of all tokens before the first stop string.

  Attributes:
    told: characters that were given out.
    stopped: a stop string has come; nothing follows.
  """

  def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
    self.tokenizer, self.stops = tokenizer, tuple(stops)
    self.told, self.stopped = 0, False
    self._ids: list[int] = []

  def push(self, ids: Sequence[int]) -> str:
    """What is final of the text, now that these follow, and was not before."""
    if self.stopped:
      return ""
    self._ids.extend(ids)
    text = self.tokenizer.decode(self._ids)
    end = len(text)
    if found := [text.find(stop) for stop in self.stops if stop in text]:
      self.stopped, end = True, min(found)
    else:
      end = min([self._beginning(text), len(text.rstrip(BROKEN))])
    new = text[self.told : end]
    self.told = max(self.told, end)
    return new

  def _beginning(self, text: str) -> int:
    """Where the earliest suffix of the text stands that a stop string begins with."""
    longest = max((len(stop) for stop in self.stops), default=0)
    for first in range(max(0, len(text) - longest + 1), len(text)):
      if any(stop.startswith(text[first:]) for stop in self.stops):
        return first
    return len(text)
