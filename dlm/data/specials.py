"""Special tokens that a text spells: read as the tokens, or counted where they stay letters."""

import re
from collections import Counter

import numpy as np

from dlm.data.tokenizers import Tokenizer


class Spelled:
  """The special tokens of a tokenizer, found by their spelling, the longest first."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self.ids = tokenizer.specials()
    self.spellings = sorted(self.ids, key=len, reverse=True)
    self.pattern = re.compile("|".join(map(re.escape, self.spellings)) or "(?!)")

  def count(self, text: str) -> Counter[str]:
    return Counter(self.pattern.findall(text))

  def encode(self, text: str) -> np.ndarray:
    """int32 ids, those of special tokens where they are spelled."""
    pieces, at = [np.zeros(0, np.int32)], 0
    for found in self.pattern.finditer(text):
      pieces.append(self._tokenizer.encode(text[at : found.start()]))
      pieces.append(np.asarray([self.ids[found[0]]], np.int32))
      at = found.end()
    return np.concatenate([*pieces, self._tokenizer.encode(text[at:])])
