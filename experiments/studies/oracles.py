r"""Every policy beside the best possible, on laws that are known exactly.

python -m experiments.studies.oracles --out=runs/oracles

The model is no network: it tells every conditional of a short law exactly (`dlm.evaluation.laws`),
so whatever a policy loses is its own. Each policy of the library runs in the real sampling loop at
temperature 1, at several of its settings; measured are the share of its texts that are the law's,
and the KL divergence from the law to what it writes. Beside them stands the optimum over all
schedules, at as many forwards (`dlm.evaluation.limits`). Minutes on a CPU. Writes report.html (open
it in a browser), picture.svg, table.md and results.json.
"""

import dataclasses
import functools
import html
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import flags

from dlm import command, files, masks
from dlm.diffusion.schedules import LogLinear
from dlm.evaluation import charts, comparison, laws
from dlm.evaluation.limits import Limits
from dlm.evaluation.report import COLOURS, here
from dlm.sampling import loop
from dlm.sampling.caching import NoCache
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import (
  Ancestral,
  Cad,
  CertaintyPrior,
  Distilled,
  Dream,
  DreamThreshold,
  Edit,
  EntropyBounded,
  Ete,
  Factor,
  Fixed,
  Hierarchy,
  LeftToRight,
  Parts,
  Pipelined,
  Planned,
  Prophet,
  Quota,
  Region,
  Rnd1,
  RunningConfidence,
  Saber,
  Threshold,
  Wino,
)
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.seeds import check_seed
from dlm.types import Canvas

OUT = flags.DEFINE_string("out", "runs/oracles", "Where everything goes.")
SAMPLES = flags.DEFINE_integer("samples", 4096, "Texts of each setting and law.", lower_bound=16)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
METHODS = flags.DEFINE_list("methods", [], "Names of the table; empty: all.")
LAWS = flags.DEFINE_list("laws", [], "By name; empty: all.")

SLOTS, IDS, TEXTS = 8, 6, 256  # of every law at most; the last id is the mask
MOST_FORWARDS = 64
SPEEDS = (2, 4)  # tokens a forward at which policies are compared

Curve = dict[str, Policy]


def curve(make: Callable[..., Policy], field: str, *values: float | int, **fixed: object) -> Curve:
  """One policy at several values of a field."""
  return {f"{field} {value:g}": make(**{field: value}, **fixed) for value in values}


TOGETHER, STEPS, SURE = (1, 2, 4, 8), (8, 4, 2, 1), (0.99, 0.9, 0.7, 0.5)
CURVES: dict[str, Curve] = {
  "fixed random": curve(Fixed, "k", *TOGETHER, order="random"),
  "fixed confidence": curve(Fixed, "k", *TOGETHER),
  "fixed margin": curve(Fixed, "k", *TOGETHER, order="margin"),
  "fixed entropy": curve(Fixed, "k", *TOGETHER, order="entropy"),
  "left_to_right": curve(LeftToRight, "k", *TOGETHER),
  "planned": curve(Planned, "k", *TOGETHER),
  "ancestral": curve(Ancestral, "steps", 32, *STEPS[:3], schedule=LogLinear()),
  "dream": curve(Dream, "steps", *STEPS),
  "rnd1": curve(Rnd1, "steps", *STEPS),
  "certainty_prior": curve(CertaintyPrior, "k", *TOGETHER[:3]),
  "quota": curve(Quota, "steps", *STEPS, block=SLOTS, threshold=0.9),
  "threshold": curve(Threshold, "threshold", *SURE),
  "dream_threshold": curve(DreamThreshold, "threshold", *SURE, steps=4),
  "factor": curve(Factor, "factor", 0.1, 0.5, 1.0, 2.0),
  "cad": curve(Cad, "threshold", *SURE, most=4),
  "hierarchy": curve(Hierarchy, "low", 0.9, 0.7, 0.5, 0.3),
  "ete": curve(Ete, "threshold", *SURE),
  "entropy_bounded": curve(EntropyBounded, "budget", 0.05, 0.3, 0.7, 1.5, 3.0),
  "saber": curve(Saber, "n", 1, 2, 4),
  "running_confidence": curve(RunningConfidence, "steps", *STEPS),
  "wino": curve(Wino, "threshold", 0.9, 0.7, 0.5, 0.3),
  "edit": curve(Edit, "threshold", 0.95, 0.7, 0.5, edit=0.5),
  "pipelined": curve(Pipelined, "threshold", *SURE, block=4),
  "distilled": curve(Distilled, "threshold", 0.05, 0.3, 0.6, 1.2, block=4),
  "prophet": curve(Prophet, "late", 60, 30, 5, inner=Fixed(k=1), steps=SLOTS, answer_start=0,
                   answer_length=SLOTS, early=60.0, mid=60.0),
  "parts": curve(Parts, "size", 4, 2, inner=Threshold(0.7)),
  "region": {f"k {k}": Region(Fixed(k=k), 0, 3) for k in TOGETHER},
}  # fmt: skip
LEFT_OUT = {
  "introspective, deer, dflash, self_speculative, wedlm": "check or write a causal model's text: "
  "the first three lose nothing by theorem",
  "duo, renoise": "begin as random ids, for which these conditionals are not made",
  "dreamon, indel, served_indel": "change a text's length",
  "credit": "chooses ids itself, at temperature 0 alone",
  "smooth": "gives the model mean embeddings, which a law cannot read",
}


@dataclasses.dataclass(frozen=True)
class Measured:
  """One setting of a policy on one law."""

  law: str
  policy: str
  setting: str
  forwards: float  # of a text, the mean
  valid: float  # share of texts that are the law's
  bits: float  # KL from the law
  bits_error: float  # a standard error
  unseen: float  # share of the law's texts that were never written: bits are then too few
  least_bits: float  # of any schedule, at as many forwards
  most_valid: float

  def __str__(self) -> str:
    more = ">" if self.unseen > 0.02 else " "
    return (
      f"{self.law:14}{self.policy:19}{self.setting:15}{self.forwards:6.2f} forwards "
      f"{100 * self.valid:6.1f} % valid (at best {100 * self.most_valid:.1f}){more}"
      f"{self.bits:7.3f} +- {self.bits_error:.3f} bits (at least {self.least_bits:.3f})"
    )


def rows_of(law: laws.Law, rows: int, seed: int) -> Canvas:
  """Nothing but masks."""
  free = np.ones(law.length, bool)
  return make_canvas(
    [np.full(law.length, IDS - 1)] * rows, [free] * rows, [*range(rows)],
    slots=SLOTS, block=SLOTS, align="canvas", mask_id=IDS - 1, seed=seed,
  )  # fmt: skip


def sampler(policy: Policy) -> Sampler:
  return Sampler(
    laws.Exact(IDS), policy, NoCache(), masks.Full(), block=getattr(policy, "block", SLOTS),
    max_forwards=MOST_FORWARDS, mask_id=IDS - 1, temperature=1.0,
  )  # fmt: skip


@functools.cache
def limits() -> dict[str, Limits]:
  """By law."""
  known = {law.name: law for law in laws.standard()}
  return {name: Limits(known[name]) for name in asked("--laws", LAWS.value, [*known])}


def asked(flag: str, names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
  """Those named, or all. ValueError for one that is not known."""
  unknown = [name for name in names if name not in known]
  if unknown:
    raise ValueError(f"{flag}={unknown[0]!r} is unknown; known: {', '.join(known)}")
  return names or known


def measure(names: Sequence[str], samples: int, seed: int) -> Iterator[Measured]:
  """Every setting on every law; a setting compiles once, laws are its parameters."""
  run = jax.jit(loop.run, static_argnums=0)
  known = [
    (
      limit,
      laws.params_of(limit.law, texts=TEXTS, slots=SLOTS, width=IDS),
      rows_of(limit.law, samples, seed),
    )
    for limit in limits().values()
  ]
  settings = [(name, *each) for name in names for each in CURVES[name].items()]
  for name, setting, policy in comparison.in_turn(settings):
    for limit, params, canvas in known:
      law, done = limit.law, run(sampler(policy), params, canvas)
      counts_S = law.counts(np.asarray(done.tokens_BxL)[:, : law.length])
      found = law.divergence(counts_S, samples)
      forwards = float(np.asarray(done.forwards_Bx3).sum(1).mean())
      yield Measured(
        law.name, name, setting, forwards, counts_S.sum() / samples, found.bits, found.error,
        found.unseen, limit.least_bits(forwards), limit.most_valid(forwards),
      )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# What is told


def mixed(points: Sequence[tuple[float, float]], forwards: float) -> float | None:
  """The least value at so many forwards in the mean, of settings and mixtures of two.

  None: all settings need more. KL is convex, so a mixture of two settings loses no more than this.
  """
  found = [y for x, y in points if x <= forwards + 1e-9]
  for x, y in points:
    for more, z in points:
      if x <= forwards < more:
        found.append(y + (z - y) * (forwards - x) / (more - x))
  return min(found, default=None)


@dataclasses.dataclass(frozen=True)
class Cell:
  """A policy on a law at a speed; None: all its settings are slower."""

  bits: float | None
  valid: float | None


def cells(found: Sequence[Measured], speed: int) -> dict[str, dict[str, Cell]]:
  """By policy and law."""
  table: dict[str, dict[str, Cell]] = {}
  for policy in dict.fromkeys(each.policy for each in found):
    for name, limit in limits().items():
      own = [each for each in found if (each.policy, each.law) == (policy, name)]
      forwards = limit.law.length / speed
      bits = mixed([(each.forwards, each.bits) for each in own], forwards)
      wrong = mixed([(each.forwards, -each.valid) for each in own], forwards)
      table.setdefault(policy, {})[name] = Cell(bits, None if wrong is None else -wrong)
  return table


def optimum(speed: int) -> dict[str, Cell]:
  """Of schedules, by law."""
  found = {}
  for name, limit in limits().items():
    forwards = limit.law.length / speed
    found[name] = Cell(limit.least_bits(forwards), limit.most_valid(forwards))
  return found


def excess(row: dict[str, Cell], best: dict[str, Cell]) -> float | None:
  """Bits lost beyond the optimum, the mean over laws; None: too slow on one of them."""
  if any(cell.bits is None for cell in row.values()):
    return None
  return sum(cell.bits - best[law].bits for law, cell in row.items()) / len(row)


def table(found: Sequence[Measured], speed: int) -> list[list[str]]:
  """Bits and percent of valid texts at a speed; the closest to the optimum first."""
  best, rows = optimum(speed), cells(found, speed)

  def said(cell: Cell) -> str:
    if cell.bits is None:
      return "-"
    return f"{max(cell.bits, 0) + 0.0:.2f}, {100 * cell.valid:.0f} %"  # and no "-0.00"

  def place(policy: str) -> float:
    far = excess(rows[policy], best)
    return math.inf if far is None else far

  lines = [["policy", "beyond", *best], ["optimum", "", *map(said, best.values())]]
  for policy in sorted(rows, key=place):
    far = excess(rows[policy], best)
    told = "-" if far is None else f"{far:.2f}"
    lines.append([policy, told, *map(said, rows[policy].values())])
  return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
  ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
  return "".join(f"| {' | '.join(line)} |\n" for line in ruled)


SHOWN = ("fixed confidence", "fixed entropy", "fixed random", "left_to_right", "threshold",
         "entropy_bounded", "wino")  # fmt: skip
PALE = "#c9c5bb"


def picture(found: Sequence[Measured]) -> str:
  """Bits against tokens per forward, a panel a law; policies that are not in SHOWN are pale."""
  panels = []
  for name, limit in limits().items():
    n, own = limit.law.length, [each for each in found if each.law == name]
    colours = dict(zip(SHOWN, COLOURS, strict=False))
    lines = []
    for policy in sorted({each.policy for each in own}, key=lambda each: (each in SHOWN, each)):
      points = sorted((n / e.forwards, e.bits, str(e)) for e in own if e.policy == policy)
      lines.append(
        charts.Line(
          policy if policy in SHOWN else "other policies",
          colours.get(policy, PALE),
          [(x, max(bits, 0)) for x, bits, _ in points],
          [told for _, _, told in points],
          joined=policy in SHOWN,
        )
      )
    grid = np.linspace(1, n, 60)
    bound = [(n / forwards, limit.least_bits(forwards)) for forwards in grid]
    lines.append(charts.Line("optimum", "#000", bound, dash="5 3", dots=False))
    top = max(limit.static_bits[0] * 1.15, 0.5)
    panels.append(
      charts.Panel(
        name,
        charts.Axis("tokens per forward", 0.5, n, base=2),
        charts.Axis("bits lost", 0, top),
        lines,
      )
    )
  return charts.svg(panels)


NOTES = (
  "Bits: KL divergence from the law to what the policy writes. Valid: share of its texts that the "
  "law can write. Settings of a policy are mixed to meet a speed (bits at most those of the "
  "mixture); - : all its settings are slower.",
  "Optimum: the fewest bits, and the most valid texts, that any schedule loses at as many forwards "
  "in the mean: exact, over all orders and set sizes, also such that go by what is written. A "
  "schedule chooses slots before it draws. Policies that look at their draws (by confidence) or "
  "take tokens back (wino, saber, edit) are none, and may lie below. For bits its forwards are "
  "averaged over the law's own texts.",
  "A policy that hardly ever writes some of a law's texts loses more bits than can be seen in so "
  "few draws: results.json tells their share as unseen.",
  "Beyond: bits above the optimum, the mean over laws. In the picture, points at a panel's upper "
  "edge lie above it.",
)


def page(found: Sequence[Measured], drawn: str) -> str:
  def cells_of(tag: str, line: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(each)}</{tag}>" for each in line)

  body = []
  for speed in SPEEDS:
    head, *lines = table(found, speed)
    rows = "".join(f"<tr>{cells_of('td', line)}</tr>" for line in lines)
    body.append(f"<h2>{speed} tokens a forward</h2>")
    body.append(f"<table><tr>{cells_of('th', head)}</tr>{rows}</table>")
  about = "".join(
    f"<li><b>{name}</b>: {html.escape(limit.law.about)}; {len(limit.law.p_S)} texts of "
    f"{limit.law.length} tokens</li>"
    for name, limit in limits().items()
  )
  left = "".join(f"<li>{name}: {html.escape(why)}</li>" for name, why in LEFT_OUT.items())
  facts = "; ".join(f"{name} {html.escape(value)}" for name, value in here())
  return (
    "<!doctype html><meta charset='utf-8'><title>Policies on exact laws</title><style>"
    "body{font:15px/1.5 system-ui;margin:2em auto;max-width:1240px;padding:0 1em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}</style>"
    f"<h1>Every policy beside the best possible</h1>{drawn}{''.join(body)}"
    f"{''.join(f'<p>{html.escape(note)}</p>' for note in NOTES)}<h2>Laws</h2><ul>{about}</ul>"
    f"<h2>Left out</h2><ul>{left}</ul><p>{facts}; {SAMPLES.value} texts a setting and law, "
    f"temperature 1</p>"
  )


def main() -> None:
  began = time.perf_counter()
  methods = asked("--methods", METHODS.value, [*CURVES])
  limits()  # of laws that are known
  seed, out = check_seed(SEED.value, "--seed"), files.made_folder(OUT.value)
  found = []
  for each in measure(methods, SAMPLES.value, seed):
    found.append(each)
    print(each, flush=True)
  tables = {speed: markdown(table(found, speed)) for speed in SPEEDS}
  for speed, told in tables.items():
    print(f"\n{speed} tokens a forward: bits lost, valid texts\n\n{told}", end="")
  drawn = picture(found)
  record = {
    "samples": SAMPLES.value, "seed": seed, "facts": dict(here()),
    "left_out": LEFT_OUT, "measured": [dataclasses.asdict(each) for each in found],
    "optimum": {
      name: {"static_bits": [float(each) for each in limit.static_bits], "length": limit.law.length}
      for name, limit in limits().items()
    },
  }  # fmt: skip
  files.write_json(out / "results.json", record)
  files.write(out / "picture.svg", drawn)
  files.write(
    out / "table.md", "\n".join(f"{k} tokens a forward\n\n{v}" for k, v in tables.items())
  )
  files.write(out / "report.html", page(found, drawn))
  print(f"{out / 'report.html'}, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  command.run(main)
