"""Sizes that programs are compiled for: of canvases, and of the forwards over them.

A canvas is a program, a width is a loop within one. So canvases are few, each twice as long as the
one before, and what they have too much is left out by widths, of which all rows share one program.
"""

SHORTEST = 16  # slots of a canvas that is shorter than a block


def canvas(length: int, block: int) -> int:
  """Slots of the canvas for a row: a block times a power of two, or a block halved.

  It depends on the row alone, so that the row is computed in the same shapes in any company.
  """
  slots = block
  while slots % 2 == 0 and slots // 2 >= max(length, SHORTEST):
    slots //= 2
  while slots < length:
    slots *= 2
  return slots


def widths(slots: int, least: int = 1) -> tuple[int, ...]:
  """From `least` slots up, ascending: sixteenths of a canvas to its half, then eighths.

  Rows fill more than half of their canvas, their windows often less. Each width is compiled, so
  there are at most twelve, and none for what short canvases would gain: steps of 8 and of 16 slots.
  """
  fine, coarse = (-(-slots // (parts * step)) * step for parts, step in ((16, 8), (8, 16)))
  half = slots // 2 // fine * fine
  found = (*range(fine, half, fine), *range(half, slots, coarse), slots)
  return tuple(width for width in found if width >= max(least, 1))


def fewer(widths: tuple[int, ...]) -> tuple[int, ...]:
  """Of ascending widths the last, and down from it each that is at most two thirds of the next."""
  kept = [widths[-1]]
  for width in reversed(widths[:-1]):
    if 3 * width <= 2 * kept[-1]:
      kept.append(width)
  return tuple(reversed(kept))
