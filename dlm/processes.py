"""One program in several processes, each with devices of its own: `--distributed` of a main.

On TPU VMs, under SLURM and Open MPI jax finds the others by itself; elsewhere --coordinator,
--processes and --process say where they are. Process 0 alone writes files and the screen.

A process that fails says so to the others through jax's coordination service, and one that is
silent for --patience seconds is taken for dead. The others then end with one line and exit code 1,
instead of waiting for it within a collective; the same command goes on from the last checkpoint.
Where process 0 is killed the service goes with it, and jax itself aborts the others at once, with a
trace (jax 0.10.2).
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
from absl import flags

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: a TPU pod.")
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where jax does not find it by itself."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, likewise.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.", lower_bound=0)
PATIENCE = flags.DEFINE_integer(
  "patience", 60, "Seconds of silence after which another process is taken for dead.", lower_bound=2
)

STOPPED = 128 + signal.SIGTERM  # exit code: asked to stop, and saved; schedulers start it again
BEAT = 0.5  # seconds between two signs of life
ALIVE = "dlm/alive/"  # of the service's keys
DONE, FAILED = "done", "failed: "


def join(able: bool) -> None:
  """Makes this process one of several, if --distributed says so; before jax is used otherwise.

  Args:
    able: whether the main is written for several.

  ValueError: jax found nobody to join, or what is said of the others does not fit.
  """
  places = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
  if not DISTRIBUTED.value:
    if places != (None, None, None):
      raise ValueError("--coordinator, --processes and --process go with --distributed")
    return
  if not able:
    raise ValueError("--distributed: this command is one of a single process")
  if None in places and places != (None, None, None):
    raise ValueError("--coordinator, --processes and --process are given together, or none of them")
  try:
    # jax's own watch ends a process by an abort with a trace: it comes after ours.
    jax.distributed.initialize(*places, heartbeat_timeout_seconds=2 * PATIENCE.value + 10)
  except (ValueError, RuntimeError) as error:
    raise ValueError(f"--distributed: {error}") from error
  if jax.process_index():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
  _watch.start()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
  """Tells the others how this process ends; one that fails does not wait for them."""
  try:
    yield
  except BaseException as error:
    if not _watch.running:
      raise
    if isinstance(error, SystemExit) and error.code == STOPPED:  # as all others do
      _watch.outlast()
      raise
    if isinstance(error, jax.errors.JaxRuntimeError):
      # A collective broke off, as it does when another process is gone: the watch knows which.
      time.sleep(PATIENCE.value + 2 * BEAT)
    _end(error)
  if _watch.running:
    _watch.outlast()


def _end(error: BaseException) -> NoReturn:
  code = 1
  if isinstance(error, SystemExit):
    code = error.code if isinstance(error.code, int) else 1
  else:
    traceback.print_exception(error)
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _watch.tell(FAILED + _said(error))
  if jax.process_index() == 0:
    time.sleep(4 * BEAT)  # the service ends with this process
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _said(error: BaseException) -> str:
  """In a line; an exit is told by the mistake that led to it."""
  found = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
  return " ".join(str(found).split())[:400] or type(found).__name__


class _Watch:
  """Signs of life of all processes, in the key-value store of jax's coordination service."""

  running = False

  def start(self) -> None:
    from jax._src import distributed  # the service has no public name

    self._client = distributed.global_state.client
    self._own, self.running, self._done = jax.process_index(), True, False
    self._ended, self._all = threading.Event(), threading.Event()
    threading.Thread(target=self._run, args=(jax.process_count(),), daemon=True).start()

  def tell(self, word: str) -> None:
    """The last sign of this process."""
    self._ended.set()
    self._client.key_value_set(f"{ALIVE}{self._own}", word, allow_overwrite=True)

  def outlast(self) -> None:
    """Returns when all are done: process 0 holds the service, which the others need until then."""
    self._done = True
    self._all.wait()
    self._ended.set()
    jax.distributed.shutdown()

  def _run(self, count: int) -> None:
    seen = {each: ("", time.monotonic()) for each in range(count)}
    beats = 0
    while not self._ended.wait(BEAT):
      try:
        beats += 1
        word = DONE if self._done else str(beats)
        self._client.key_value_set(f"{ALIVE}{self._own}", word, allow_overwrite=True)
        words = dict(self._client.key_value_dir_get(ALIVE))
      except jax.errors.JaxRuntimeError:
        self._give_up("process 0 is gone")
        return
      for key, word in words.items():
        each = int(key.removeprefix(ALIVE))
        if word != seen[each][0]:
          seen[each] = word, time.monotonic()
      for each, (word, when) in seen.items():
        if word.startswith(FAILED):
          self._give_up(f"process {each} ended: {word.removeprefix(FAILED)}")
        elif word != DONE and time.monotonic() - when > PATIENCE.value:
          self._give_up(f"process {each} is gone: no sign of it for {PATIENCE.value} s")
      if len(words) == count and set(words.values()) == {DONE}:
        self._all.set()

  def _give_up(self, why: str) -> None:
    if not self._ended.is_set():
      main = pathlib.Path(sys.argv[0]).stem
      print(f"{main}: {why}; the same command goes on from what is saved", file=sys.stderr)
      sys.stderr.flush()
      os._exit(1)


_watch = _Watch()
