"""Denoising in the terminal: every token, coloured by how long ago it was written."""

import itertools
import time
from collections.abc import Iterable

import numpy as np
from rich.console import Console, Group
from rich.live import Live
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
  now = int(canvas.turn_B[row])

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


def show(
  canvases: Iterable[Canvas], rows: int, tokenizer: Tokenizer, mask_id: int, seconds: float = 0.05
) -> None:
  """Plays a stream of canvases in place, at least `seconds` a forward; the last one stays.

  Where standard output is no terminal only the first and the last canvas are printed.
  """
  console = Console(highlight=False)

  def frame(canvas: Canvas) -> Group:
    lines = []
    for row in range(rows):
      forwards = int(canvas.forwards_Bx3[row].sum())
      written = int((np.asarray(canvas.when_BxL[row]) >= 0).sum())
      lines += [Text(f"{written} tokens, {forwards} forwards", "italic"), Text()]
      lines.insert(-1, render(canvas, row, tokenizer, mask_id))
    return Group(*lines)

  if not console.is_terminal:
    first, *_, last = canvases
    console.print(frame(first), frame(last))
    return
  with Live(console=console, auto_refresh=False) as live:
    for canvas in canvases:
      live.update(frame(canvas), refresh=True)
      time.sleep(seconds)
