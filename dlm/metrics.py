"""What a run tells: JSON lines, TensorBoard event files, and a bar or plain lines on the screen."""

import contextlib
import io
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import jax

from dlm import files
from dlm.types import LossSum

JSONL = "metrics.jsonl"
COUNT = "count"  # of a tally's sums, what the others are divided by


class Metrics:
  """The record of one run, written by process 0 only. Close it, or use it in a `with`.

  Args:
    directory: where `metrics.jsonl` and the event files go; it exists.
    step: the step that was restored: records of later steps are dropped, the run repeats them.
    steps: length of the run, for the bar.
  """

  def __init__(self, directory: str | os.PathLike, *, step: int, steps: int):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self._path = pathlib.Path(directory) / JSONL
    left_out = _truncate(self._path, step)
    self._file = self._path.open("a", encoding="utf-8")
    self._events = _event_writer(directory, step)
    self._screen = _bar(step, steps) or _Lines(steps)
    if left_out:
      self.say(f"{self._path}: {left_out} damaged lines are left out")

  def __enter__(self) -> "Metrics":
    return self

  def __exit__(self, *_) -> None:
    if not self._active:
      return
    self._screen.close()
    self._file.close()
    if self._events is not None:
      self._events.close()

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Records named numbers; one that is not finite is `null` in the JSON lines."""
    if not self._active:
      return
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._record({"step": step, **finite})
    if self._events is not None:
      self._events.scalars(step, values)

  def texts(self, step: int, name: str, texts: list[str]) -> None:
    if not self._active:
      return
    self._record({"step": step, name: texts})
    if self._events is not None:
      self._events.text(step, name, "\n\n".join(f"```\n{text}\n```" for text in texts))

  def show(self, step: int, values: dict[str, float]) -> None:
    """Puts the step and its numbers on the screen: the bar, or one line."""
    if self._active:
      self._screen.show(step, values)

  def say(self, message: str) -> None:
    if self._active:
      self._screen.say(message)

  def _record(self, record: dict) -> None:
    with files.naming(self._path):
      self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
      self._file.flush()


class Tally:
  """Sums since the last record: loss and speed.

  Args:
    tokens, flops: of one update, over all devices.
    sums: what a run that was stopped between two records had summed by then.
  """

  def __init__(self, tokens: int, flops: float, sums: dict[str, float]):
    self._tokens, self._flops = tokens, flops
    self._began: float | None = None  # None until an update has ended: the first one compiles
    self._reset()
    self._sums |= sums

  def _reset(self) -> None:
    self._sums = {"loss": 0.0, COUNT: 0.0}
    self._steps, self._seconds, self._last = 0, 0.0, {}

  def add(self, loss: LossSum, last: dict[str, float]) -> None:
    """Counts an update that has just ended; of `last` only the newest values are kept."""
    for name, value in {"loss": loss.total, COUNT: loss.count, **loss.metrics}.items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._last = last
    now = time.perf_counter()
    if self._began is not None:
      self._seconds += now - self._began
      self._steps += 1
    self._began = now

  @property
  def sums(self) -> dict[str, float]:
    """What a run that goes on from here needs, to record what this one would have."""
    return dict(self._sums)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What happens inside is not training: neither it nor the update after it is timed."""
    yield
    self._began = None

  def values(self) -> dict[str, float]:
    """Means over what was added since the last call, and the speed of the updates timed.

    Where nothing was learned there is no mean.
    """
    sums, count = self.sums, self._sums[COUNT]
    values = {name: sums[name] / count for name in sums if name != COUNT and count}
    values |= self._last
    if self._steps:
      seconds = self._seconds / self._steps
      values["tokens/s"] = self._tokens / seconds
      values["flop/s"] = self._flops / seconds
      values["seconds/step"] = seconds
    self._reset()
    return values


def records(directory: str | os.PathLike) -> Iterator[dict]:
  """What `metrics.jsonl` of a run holds; what is no record is passed over."""
  with (pathlib.Path(directory) / JSONL).open("rb") as file:
    yield from filter(None, map(_parsed, file))


def _parsed(line: bytes) -> dict | None:
  """A line of bytes: a str would also be cut at characters that a record may hold, as U+2028."""
  try:
    record = files.parse_json(line, JSONL)
  except ValueError:
    return None
  is_record = isinstance(record, dict) and isinstance(record.get("step"), int)
  return record if is_record and line.endswith(b"\n") else None


def _truncate(path: pathlib.Path, step: int) -> int:
  """Drops the records after `step`, and what is none; how many lines of the latter were whole."""
  if not path.exists():
    return 0
  kept, damaged = io.BytesIO(), 0
  with path.open("rb") as file:
    for line in file:
      record = _parsed(line)
      if record is None:
        damaged += line.endswith(b"\n")  # a last line that a kill cut short is nothing to tell
      elif record["step"] <= step:
        kept.write(line)
  files.write(path, kept.getvalue())
  return damaged


class _Events:
  """TensorBoard's file, written by no thread: an error of the disk is told where it happens."""

  def __init__(self, directory: str | os.PathLike, step: int):
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._summary, self._proto = summary, event_pb2
    self._path = pathlib.Path(directory) / "events"
    self._file = event_file_writer.EventsWriter(str(self._path))
    if step:  # hides events of an earlier run past the step, as its JSON lines are dropped
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(step + 1, session_log=start)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._write(step, summary=self._summary.scalar(name, value))

  def text(self, step: int, name: str, text: str) -> None:
    self._write(step, summary=self._summary.text(name, text))

  def close(self) -> None:
    with files.naming(self._path):
      self._file.close()

  def _write(self, step: int, **what) -> None:
    with files.naming(self._path):
      self._file.write_event(self._proto.Event(step=step, wall_time=time.time(), **what))
      self._file.flush()


def _event_writer(directory: str | os.PathLike, step: int) -> _Events | None:
  try:
    return _Events(directory, step)
  except ImportError:
    print("no TensorBoard event files: `pip install tensorboardX` writes them", file=sys.stderr)
    return None


def si(value: float) -> str:
  """1234567 -> '1.23M'."""
  for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= factor:
      return f"{value / factor:.3g}{letter}"
  return f"{value:.3g}"


def _numbers(values: dict[str, float]) -> str:
  shown = {"loss": "{:.4f}".format, "tokens/s": si, "flop/s": si}
  return "  ".join(f"{name} {form(values[name])}" for name, form in shown.items() if name in values)


class _Lines:
  """A line now and then, for log files and pipes."""

  def __init__(self, steps: int):
    self._steps = steps

  def show(self, step: int, values: dict[str, float]) -> None:
    left = ""
    if "seconds/step" in values:
      left = f"  eta {(self._steps - step) * values['seconds/step']:.0f} s"
    print(f"step {step}/{self._steps}  {_numbers(values)}{left}", flush=True)

  def say(self, message: str) -> None:
    print(message, flush=True)

  def close(self) -> None:
    pass


class _Bar:
  """One line that moves, for a terminal."""

  def __init__(self, step: int, steps: int):
    from rich import progress

    self._progress = progress.Progress(
      progress.TextColumn("step"),
      progress.MofNCompleteColumn(),
      progress.BarColumn(),
      progress.TextColumn("{task.fields[numbers]}"),
      progress.TextColumn("eta"),
      progress.TimeRemainingColumn(),
    )
    self._task = self._progress.add_task("train", total=steps, completed=step, numbers="compiling")
    self._progress.start()

  def show(self, step: int, values: dict[str, float]) -> None:
    self._progress.update(self._task, completed=step, numbers=_numbers(values))

  def say(self, message: str) -> None:
    self._progress.console.print(message, markup=False, highlight=False)

  def close(self) -> None:
    self._progress.stop()


def _bar(step: int, steps: int) -> _Bar | None:
  """The bar, where there is a terminal to draw it on and `rich` to draw it."""
  if not sys.stdout.isatty():
    return None
  try:
    return _Bar(step, steps)
  except ImportError:
    print("no progress bar: `pip install rich` draws it", file=sys.stderr)
    return None
