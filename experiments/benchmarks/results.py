"""Times taken side by side, tables, and the JSON that keeps them.

A file holds: suite, size, command, date (UTC), device, versions, load (the machine's load averages
before and after), and tables: title, note and rows. A row's ratio comes first. A spread is median,
min and max over rounds.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dlm import files
from dlm.metrics import si

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
PEERS = ("torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Spread:
  """One number, measured once a round."""

  median: float
  min: float
  max: float
  rounds: int

  @classmethod
  def of(cls, values: Sequence[float]) -> "Spread":
    return cls(statistics.median(values), min(values), max(values), len(values))

  def __str__(self) -> str:
    return f"{si(self.median)} ({si(self.min)} - {si(self.max)})"


Row = dict[str, str | int | float | Spread]  # column -> value; the ratio is the first column


@dataclasses.dataclass(frozen=True)
class Table:
  title: str
  note: str  # what the ratio is: of what to what
  rows: list[Row]

  def __str__(self) -> str:
    columns = list(self.rows[0])
    cells = [columns, *[[_cell(row[column]) for column in columns] for row in self.rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([f"{self.title}: {self.note}", *lines])


def _cell(value: str | int | float | Spread) -> str:
  return si(value) if isinstance(value, float) else str(value)


def interleaved(
  calls: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
  """Seconds of each call, round by round, and what each returned last.

  What disturbs the machine then disturbs all of them; every second round runs them backwards, so
  that none always follows the same neighbour. Calls are compiled and warm already.
  """
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  results: dict[str, Any] = {}
  for index in range(rounds):
    for name in list(calls)[:: -1 if index % 2 else 1]:
      began = time.perf_counter()
      results[name] = jax.block_until_ready(calls[name]())
      seconds[name].append(time.perf_counter() - began)
  return seconds, results


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
  """Ratios of what was measured in the same round."""
  return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def rate(amount: float, seconds: Sequence[float]) -> Spread:
  return Spread.of([amount / each for each in seconds])


def facts() -> dict[str, Any]:
  """When and where, for the head of a file."""
  device = jax.devices()[0]
  installed = [name for name in PEERS if importlib.util.find_spec(name) is not None]
  versions = {name: importlib.metadata.version(name) for name in (*PACKAGES, *installed)}
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "device": {
      "backend": device.platform,
      "kind": device.device_kind,
      "count": jax.device_count(),
      "host": f"{_processor()}, {os.cpu_count()} cores",
    },
    "versions": {"python": platform.python_version(), **versions},
  }


def _processor() -> str:
  """The processor's name, where the system tells it."""
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()


def write(path: pathlib.Path, head: Mapping[str, Any], tables: Sequence[Table]) -> None:
  record = {**head, "tables": [dataclasses.asdict(table) for table in tables]}
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, record, indent=1)
