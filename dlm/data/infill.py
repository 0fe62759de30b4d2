"""Markup for infilling, where that is asked for: `[[8]]` stands for eight open tokens.

`The cat [[4]] on the mat.` is fixed text, four masked tokens, fixed text. To write a span as plain
text put one more bracket before it: `[[[8]]` is the text `[[8]]`. Any other bracket is itself.
Fixed texts are tokenised one by one, as the spans cut them.
"""

import re

import numpy as np

from dlm.data.tokenizers import Tokenizer

_SPAN = re.compile(r"\[(\[\[\d+\]\])|\[\[(\d+)\]\]")


def parse_infill(text: str, most: int) -> tuple[str | int, ...]:
  """Segments in order: fixed text (str, never empty) or the number of tokens to fill in (int).

  Args:
    most: tokens that all spans may ask for together: what the canvas holds.

  Raises:
    ValueError: a span asks for none, or the spans up to it for more than `most`.
  """
  segments, fixed, end, asked = [], "", 0, 0
  for match in _SPAN.finditer(text):
    fixed, end = fixed + text[end : match.start()], match.end()
    if match[1]:
      fixed += match[1]
      continue
    digits = match[2].lstrip("0")
    where = f"{match[0]:.40} at character {match.start()}"
    if not digits:
      raise ValueError(f"{where} must ask for at least one token")
    # Digits are counted first: Python refuses to read thousands of them.
    if len(digits) > len(str(most)) or asked + int(digits) > most:
      raise ValueError(f"{where}: spans may ask for at most {most} tokens, all that a row holds")
    asked += int(digits)
    segments += [fixed, int(digits)]
    fixed = ""
  return tuple(segment for segment in (*segments, fixed + text[end:]) if segment != "")


def encode_infill(text: str, tokenizer: Tokenizer, most: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids (int32, the mask id where open) and the open mask (bool) of marked-up text.

  `most` and errors: as `parse_infill`.
  """
  ids, is_open = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
  for segment in parse_infill(text, most):
    if isinstance(segment, int):
      ids.append(np.full(segment, tokenizer.mask_id, np.int32))
    else:
      ids.append(tokenizer.encode(segment))
    is_open.append(np.full(ids[-1].size, isinstance(segment, int)))
  return np.concatenate(ids), np.concatenate(is_open)
