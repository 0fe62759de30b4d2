"""One self-contained HTML page, and one picture, of a training run and its decoding policies.

A caller fills in a `Report`; every number that follows from others (headline, AUP, intervals, the
ideal shuffle, characters restored) is worked out here, so that page and picture cannot disagree.
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Sequence

import flax
import jax

from dlm import files
from dlm.evaluation import parallelism
from dlm.evaluation.parallelism import MEAN_TASK, CurvePoint

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
PLACEHOLDER = "%REPORT%"
LOSS_POINTS = 500  # a split's curve is thinned to about so many points: more cannot be seen
GIVEN = -1

# One colour, dash and marker per policy, by order of appearance: told apart without colour too.
# These are the page's in light mode; report.html holds the lighter twins for dark mode.
COLOURS = ("#0060a8", "#c44e00", "#00805c", "#a8407a", "#8a6d00", "#5b52b0", "#4d6b78", "#8c3a3a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ((), (7, 3), (2, 2), (7, 2, 2, 2), (10, 4), (4, 2), (1, 3), (10, 2, 2, 2))


@dataclasses.dataclass(frozen=True)
class LossPoint:
  step: int
  split: str  # "train", "eval"
  loss: float  # nats per token


@dataclasses.dataclass(frozen=True)
class Trace:
  """How one sample was written. Traces of equal `sample` share the prompt and are compared."""

  sample: str  # a short name: "reverse, 6 letters"
  policy: str
  setting: str
  tokens: tuple[str, ...]  # text of every position, prompt first
  when: tuple[int, ...]  # forward (1, 2, ...) that wrote the position; -1: given
  forwards: int  # of the whole completion, commits included
  correct: bool | None = None  # None: nothing to grade

  def __post_init__(self):
    where = f"Trace {self.sample!r} by {self.policy}"
    if len(self.tokens) != len(self.when):
      raise ValueError(f"{where}: {len(self.tokens)} tokens but {len(self.when)} when")
    if any(w != GIVEN and not 1 <= w <= self.forwards for w in self.when):
      raise ValueError(f"{where}: when={self.when} must be -1 or lie in 1..{self.forwards=}")


@dataclasses.dataclass(frozen=True)
class Filled:
  """What one policy wrote into a hole."""

  policy: str
  setting: str
  text: str
  tpf: float


@dataclasses.dataclass(frozen=True)
class Infill:
  sample: str
  before: str
  truth: str
  after: str
  filled: tuple[Filled, ...]


@dataclasses.dataclass(frozen=True)
class Filling:
  """How well one policy fills all holes, the shown ones among them."""

  policy: str
  setting: str
  characters: float  # percent at their place
  whole: float  # percent of holes without a wrong character
  tpf: float | None  # None: no model, a baseline
  n: int  # holes


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """Measured accuracy in percent of shuffling `items` with `together` of them decided per forward.

  It stands beside a perfect model of the law of all changed orders (`shuffle_accuracy`), so it is
  to be sampled at temperature 1, with places chosen without looking at what is drawn. `together`
  counts items, not tokens: in the byte grid "d a c b" two tokens left to right are one item.
  """

  items: int
  together: int
  measured: float | None = None


@dataclasses.dataclass(frozen=True)
class Determined:
  """Measured accuracy in percent of a task whose prompt has one right answer, sampled likewise."""

  task: str
  together: int
  measured: float


@dataclasses.dataclass(frozen=True)
class Speed:
  """What one way of decoding took for the same prompts, summed over them.

  The first row of a temperature is what its others are compared with: `same` counts the texts that
  are that row's, to the token.
  """

  policy: str
  setting: str
  temperature: float
  tokens: int
  forwards: int
  seconds: float
  same: int
  n: int  # prompts


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one setting took for all problems together; None: not measured."""

  policy: str
  setting: str
  answers: int
  tokens_per_s: float
  latency: float  # seconds an answer, on average
  p95: float
  joules_per_token: float | None
  joules_per_right: float | None
  watts: float | None
  memory: float | None  # shares in [0, 1]
  compute: float | None  # the highest of a batch


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything the page shows. A part left empty has no section."""

  title: str
  sentence: str  # what was run: model size, data, time, device, versions
  vocab: int  # ln(vocab) is the loss of a uniform guess
  facts: tuple[tuple[str, str], ...] = ()  # (name, value), small print
  losses: tuple[LossPoint, ...] = ()
  curves: tuple[CurvePoint, ...] = ()  # the task "mean", if there, is shown first
  shuffle: tuple[Shuffled, ...] = ()
  determined: tuple[Determined, ...] = ()  # beside the shuffles; the tasks of the mean
  traces: tuple[Trace, ...] = ()
  speeds: tuple[Speed, ...] = ()
  costs: tuple[Cost, ...] = ()
  fillings: tuple[Filling, ...] = ()  # baselines first
  infills: tuple[Infill, ...] = ()
  notes: tuple[str, ...] = ()  # one paragraph each


def here() -> tuple[tuple[str, str], ...]:
  """Facts of where and when a report is written."""
  versions = f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}"
  return (
    ("device", f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores"),
    ("software", versions),
    ("date", time.strftime("%Y-%m-%d")),
  )


def exact_characters(truth: str, text: str) -> float:
  """Percent of the truth's characters that stand at their place in the text."""
  if not truth:
    raise ValueError("exact_characters: truth must not be empty")
  return 100 * sum(a == b for a, b in zip(truth, text, strict=False)) / len(truth)


def tasks(report: Report) -> list[str]:
  """Tasks in order of appearance, the mean first."""
  names = list(dict.fromkeys(p.task for p in report.curves))
  return sorted(names, key=lambda name: name != MEAN_TASK)


def policies(report: Report) -> list[str]:
  """Policies in order of appearance: a policy's place is its colour, dash and marker."""
  seen = [p.policy for p in report.curves] + [t.policy for t in report.traces]
  return list(dict.fromkeys(seen + [f.policy for i in report.infills for f in i.filled]))


def _compared(speeds: Sequence[Speed]) -> list[dict]:
  """With what follows from each, and its quotient by the first row of its temperature."""
  first: dict[float, dict] = {}
  rows = []
  for each in speeds:
    row = dataclasses.asdict(each)
    row["tpf"] = each.tokens / max(each.forwards, 1)
    row["tokens_per_s"] = each.tokens / each.seconds
    base = first.setdefault(each.temperature, row)
    row["faster"] = row["tokens_per_s"] / base["tokens_per_s"]
    rows.append(row)
  return rows


def _thinned(losses: Sequence[LossPoint]) -> list[dict]:
  kept = []
  for split in dict.fromkeys(point.split for point in losses):
    curve = sorted((p for p in losses if p.split == split), key=lambda p: p.step)
    stride = math.ceil(len(curve) / LOSS_POINTS)
    kept += curve[::stride] + ([curve[-1]] if (len(curve) - 1) % stride else [])
  return [dataclasses.asdict(point) for point in kept]


def payload(report: Report) -> dict:
  """The page's data: the report, and the numbers that follow from it."""
  data = dataclasses.asdict(report)
  data["policies"] = policies(report)
  data["losses"] = _thinned(report.losses)
  data["speeds"] = _compared(report.speeds)
  for point, row in zip(report.curves, data["curves"], strict=True):
    row["low"], row["high"] = point.interval()
  data["tasks"] = []
  for task in tasks(report):
    places = [i for i, p in enumerate(report.curves) if p.task == task]
    points = [report.curves[i] for i in places]
    chosen = {
      "base": places[points.index(parallelism.one_at_a_time(points))],
      "fast": places[points.index(parallelism.best_within(points))],
    }
    data["tasks"].append({"name": task, "aup": parallelism.aup_by_policy(points), **chosen})
  for row in data["shuffle"]:
    law = (row["items"], row["together"])
    row["bits"] = parallelism.shuffle_bits(*law, identity=False)
    row["ideal"] = 100 * parallelism.shuffle_accuracy(*law, identity=False)
  for infill in data["infills"]:
    for filled in infill["filled"]:
      filled["exact"] = exact_characters(infill["truth"], filled["text"])
  return data


def page(report: Report) -> str:
  """The HTML page: no network, no other file. ValueError on NaN or infinite numbers."""
  text = json.dumps(payload(report), allow_nan=False, separators=(",", ":"))
  # ASCII JSON inside <script>: without "<" nothing can close the element or open a comment.
  text = text.replace("<", "\\u003c")
  before, after = TEMPLATE.read_text(encoding="utf-8").split(PLACEHOLDER)
  return before + text + after


def write_report(path: str | os.PathLike, report: Report) -> None:
  content = page(report)
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  files.write(path, content)


# ---------------------------------------------------------------------------------------------
# The picture


def picture(path: str | os.PathLike, report: Report, *, shown: Sequence[str], trace: Trace) -> None:
  """A PNG for the README: the curves of the tasks `shown`, and a trace at four moments.

  Needs matplotlib (imported here only). ValueError for a task without curves.
  """
  for task in shown:
    if task not in tasks(report):
      raise ValueError(f"picture: {task=} has no curves; known: {', '.join(tasks(report))}")
  from io import BytesIO

  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  size = (6 + 3.6 * len(shown), 4.3)
  figure = Figure(figsize=size, dpi=150, facecolor="#fbfaf7", layout="constrained")
  FigureCanvasAgg(figure)
  *charts, last = figure.subplots(1, len(shown) + 1, width_ratios=(*[4] * len(shown), 6))
  for axes, task in zip(charts, shown, strict=True):
    _draw_curves(axes, report, task)
  charts[0].legend(frameon=False, fontsize=9, handlelength=3.5)
  _draw_trace(last, trace)
  buffer = BytesIO()
  figure.savefig(buffer, format="png")
  files.write(path, buffer.getvalue())


def _draw_curves(axes, report: Report, task: str) -> None:
  for place, policy in enumerate(policies(report)):
    points = [p for p in report.curves if p.policy == policy and p.task == task and p.tpf > 0]
    points.sort(key=lambda p: p.tpf)
    style = place % len(COLOURS)
    axes.plot(
      [p.tpf for p in points],
      [p.accuracy for p in points],
      color=COLOURS[style],
      marker=MARKERS[style],
      linestyle=(0, DASHES[style]) if DASHES[style] else "-",
      label=policy,
      linewidth=1.6,
      markersize=6,
    )
  axes.set_xscale("log", base=2)
  axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
  axes.set(xlabel="tokens per forward", ylim=(0, 103), facecolor="#ffffff")
  of = " and ".join(dict.fromkeys(d.task for d in report.determined))
  name = of if task == MEAN_TASK and of else task
  axes.set_title(f"% right, {name}", loc="left", fontsize=11)
  axes.grid(axis="y", color="#dedbd3", lw=0.8)
  axes.spines[["top", "right"]].set_visible(False)


def _draw_trace(axes, trace: Trace) -> None:
  """Rows of cells under each other, one group per moment; colours as on the page."""
  from matplotlib import font_manager, patches

  columns = 24  # as few as let four moments of square cells fit the axes' height
  while 4 * (math.ceil(len(trace.tokens) / columns) + 1.1) > 0.7 * columns:
    columns += 1
  font = font_manager.FontProperties(family="DejaVu Sans Mono", size=240 / columns)
  drawable = font_manager.get_font(font_manager.findfont(font))
  written = [w for w in trace.when if w != GIVEN]
  end = max(written, default=1)
  moments = sorted({0, math.ceil(end / 3), math.ceil(2 * end / 3), end})
  y = 0.0
  for now in moments:
    done = sum(w <= now for w in written)
    caption = f"forward {now}: {done} of {len(written)} tokens"
    axes.text(0, y - 0.25, caption, size=8.5, color="#5d5d68", va="bottom")
    x = 0
    for token, when in zip(trace.tokens, trace.when, strict=True):
      if x >= columns:
        x, y = 0, y + 1
      if when != GIVEN:
        # Blank, written just now, or written earlier: the older the paler.
        heat = 1 if when >= now else 0.06 + 0.46 * (1 - (now - when) / max(end, 2))
        fill = ("#d9d5cb" if when > now else "#ffb000", heat)
        axes.add_patch(patches.Rectangle((x + 0.05, y + 0.08), 0.9, 0.84, facecolor=fill, lw=0))
      if when <= now:
        glyph = token[:1] or "·"  # a cell holds one character, and only what the font can draw
        if not (glyph.isprintable() and drawable.get_char_index(ord(glyph))):
          glyph = "·"
        ink = "#8b8b95" if when == GIVEN else "#1d1d22"
        axes.text(
          x + 0.5,
          y + 0.55,
          glyph,
          ha="center",
          va="center",
          color=ink,
          fontproperties=font,
          parse_math=False,
        )
      x += 1
    y += 2.1
  axes.set(xlim=(0, columns), ylim=(y - 0.9, -1.2), aspect="equal")
  axes.axis("off")
  axes.set_title(f"{trace.sample}, {trace.policy} {trace.setting}", loc="left", fontsize=11)
