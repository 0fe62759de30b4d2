"""Pictures for pages: panels of lines and points as one SVG, without a plotting package."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 300, 240  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 38  # its margins


@dataclasses.dataclass(frozen=True)
class Line:
  """Points in the data's units; `told` is shown where the pointer rests on one."""

  name: str
  colour: str
  points: Sequence[tuple[float, float]]
  told: Sequence[str] = ()
  dash: str = ""
  joined: bool = True
  dots: bool = True


@dataclasses.dataclass(frozen=True)
class Axis:
  """From `low` to `high`; positive ends where it is logarithmic. `base`: of its ticks."""

  name: str
  low: float
  high: float
  base: int = 0  # 0: linear

  def __post_init__(self):
    if not self.low < self.high or (self.base and self.low <= 0):
      raise ValueError(f"Axis: {self.name} from {self.low} to {self.high}, base={self.base}")

  def place(self, value: float) -> float:
    """0 at the low end, 1 at the high one; values beyond lie on the end."""
    value = min(max(value, self.low), self.high)
    if self.base:
      return math.log(value / self.low) / math.log(self.high / self.low)
    return (value - self.low) / (self.high - self.low)

  def ticks(self) -> list[float]:
    if self.base:
      first = math.ceil(math.log(self.low, self.base) - 1e-9)
      last = math.floor(math.log(self.high, self.base) + 1e-9)
      stride = max(1, math.ceil((last - first) / 5))
      return [float(self.base) ** i for i in range(first, last + 1, stride)]
    rough = (self.high - self.low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = min((each * unit for each in (1, 2, 5, 10)), key=lambda each: abs(each - rough))
    first = math.ceil(self.low / step - 1e-9)
    return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclasses.dataclass(frozen=True)
class Panel:
  title: str
  x: Axis
  y: Axis
  lines: Sequence[Line]


def svg(panels: Sequence[Panel], columns: int = 4) -> str:
  """All panels in rows of `columns`, below them the name of every line, once."""
  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  drawn = [
    f'<g transform="translate({i % columns * WIDTH} {i // columns * HEIGHT})">{_panel(each)}</g>'
    for i, each in enumerate(panels)
  ]
  legend, height = _legend(panels, columns * WIDTH, rows * HEIGHT)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * WIDTH} {height}" '
    f'font-family="system-ui, sans-serif" font-size="11" role="img">'
    f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}{legend}</svg>'
  )


def _panel(panel: Panel) -> str:
  wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
  parts = [f'<text x="{LEFT}" y="18" font-weight="600">{html.escape(panel.title)}</text>']
  for tick in panel.x.ticks():
    x = LEFT + wide * panel.x.place(tick)
    parts.append(f'<text x="{x:.1f}" y="{TOP + high + 14}" text-anchor="middle">{tick:g}</text>')
  for tick in panel.y.ticks():
    y = TOP + high * (1 - panel.y.place(tick))
    parts.append(f'<path d="M{LEFT} {y:.1f}h{wide}" stroke="#e4e1da"/>')
    parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
  names = f"{html.escape(panel.x.name)}; up: {html.escape(panel.y.name)}"
  parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="#666">{names}</text>')
  for line in panel.lines:
    at = [
      (LEFT + wide * panel.x.place(x), TOP + high * (1 - panel.y.place(y))) for x, y in line.points
    ]
    if line.joined:
      path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
      dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
      parts.append(
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.6"{dash}/>'
      )
    if line.dots:
      told = line.told or [f"{line.name}: {x:.3g}, {y:.3g}" for x, y in line.points]
      parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}">'
        f"<title>{html.escape(each)}</title></circle>"
        for (x, y), each in zip(at, told, strict=True)
      ]
  return "".join(parts)


def _legend(panels: Sequence[Panel], width: int, top: int) -> tuple[str, int]:
  named = {line.name: line for panel in panels for line in panel.lines}
  parts, x, y = [], 12, top + 14
  for name, line in named.items():
    needed = 34 + 6.4 * len(name)
    if x + needed > width:
      x, y = 12, y + 18
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    parts.append(f'<path d="M{x} {y - 4}h18" stroke="{line.colour}" stroke-width="2"{dash}/>')
    parts.append(f'<text x="{x + 23}" y="{y}">{html.escape(name)}</text>')
    x += needed
  return "".join(parts), y + 12
