"""Denoising in the terminal: every token, coloured by how long ago it was written."""

import itertools

import numpy as np
from rich.text import Text

from dlm.data import Tokenizer
from dlm.types import Canvas

MASKED = "bright_black"
GIVEN = "dim"
# Young tokens are bright; after a few forwards they settle into the colour of text.
AGES = ("bold black on bright_yellow", "bright_yellow", "yellow", "green", "cyan")


def render(canvas: Canvas, row: int, tokenizer: Tokenizer, mask_id: int) -> Text:
  """One row of the canvas: the prompt dim, masks as shaded cells, tokens by age of commit."""
  n = int(canvas.length_B[row])
  ids, when = np.asarray(canvas.tokens_BxL[row, :n]), np.asarray(canvas.when_BxL[row, :n])
  open_ = np.asarray(canvas.open_BxL[row, :n])
  now = int(canvas.forwards_Bx3[row, :2].sum())

  def style(i: int) -> str:
    if not open_[i]:
      return GIVEN
    if ids[i] == mask_id:
      return MASKED
    return AGES[min(max(now - int(when[i]), 0), len(AGES) - 1)]

  out = Text()
  # Neighbours of one style are decoded together: a byte alone may be half a character.
  for name, run in itertools.groupby(range(n), style):
    slots = list(run)
    out.append("░" * len(slots) if name == MASKED else tokenizer.decode(ids[slots]), name)
  return out
