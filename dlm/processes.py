"""One program in several processes, each with devices of its own: `--distributed` of a main.

On TPU VMs, under SLURM and Open MPI jax finds the others by itself; elsewhere --coordinator,
--processes and --process say where they are. Process 0 alone writes files and the screen.

A process that fails says so to the others through jax's coordination service, and one that is
silent for --patience seconds is taken for dead. The others then end with one line and exit code 1,
instead of waiting for it within a collective; the same command goes on from the last checkpoint.
No process ends well before all have: an error of the last one is everybody's.

The service lives in process 0 and dies with it. jax's client answers that by aborting its process
with a trace, and its callback for the case cannot be called from Python (jax 0.10.2 to 0.12.0), so
the others reach the service through a tunnel of their own: see `tunnel`.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
from absl import flags

from dlm import tunnel
from dlm.tunnel import START

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
# How errors of XLA begin, which reach Python as ValueErrors too.
STATUS = re.compile(
  "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)


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
  from jax._src.clusters import ClusterEnv  # what jax itself asks has no public name

  try:
    address = COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS")
    address, count, own, _ = ClusterEnv.auto_detect_unset_distributed_params(
      address, PROCESSES.value, PROCESS.value, None, None, START
    )
    way = _Tunnel(address) if own and address else None
    # jax's own watch ends a process by an abort with a trace: it comes after ours.
    late = 2 * PATIENCE.value + 10
    jax.distributed.initialize(
      way.address if way else address,
      count,
      own,
      initialization_timeout=START,
      heartbeat_timeout_seconds=late,
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(f"--distributed: {error}") from error
  if jax.process_index():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
  _watch.start()
  if way:
    way.watch()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
  """Tells the others how this process ends, and waits for them if it ends well."""
  try:
    yield
  except BaseException as error:
    if not _watch.running:
      raise
    if isinstance(error, SystemExit) and error.code == STOPPED:  # as all others do
      _part()
      raise
    if broke_off(error):  # the watch knows who is gone, or soon will
      time.sleep(_watch.patience + 4 * BEAT)
    _end(error)
  if _watch.running:
    _part()


def _part() -> None:
  """Returns when all are done, and know it of each other: the service ends with process 0."""
  _watch.tell(DONE)
  _watch.all_done.wait()
  jax.distributed.shutdown()


def broke_off(error: BaseException) -> bool:
  """Did a collective of several processes fail, as it does when one of them is gone?"""
  behind, seen = [error], []
  while behind and _watch.running:
    found = behind.pop()
    if isinstance(found, jax.errors.JaxRuntimeError) or STATUS.match(str(found)):
      return True
    if found is not None and found not in seen:
      seen.append(found)
      behind += [found.__cause__, found.__context__]
  return False


def _end(error: BaseException) -> NoReturn:
  code = 1
  if isinstance(error, SystemExit):
    code = error.code if isinstance(error.code, int) else 1
  else:
    traceback.print_exception(error)
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _watch.tell(FAILED + _said(error))
  time.sleep(4 * BEAT)  # till the others have heard: the service may end with this process
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
    self._own, self._ended = f"{ALIVE}{jax.process_index()}", ""
    self._words, self._heard = {}, time.monotonic()
    self.patience, self.all_done, self.running = PATIENCE.value, threading.Event(), True
    threading.Thread(target=self._exchange, daemon=True).start()
    threading.Thread(target=self._look, args=(jax.process_count(),), daemon=True).start()

  def tell(self, word: str) -> None:
    """The last sign of this process."""
    self._ended = word
    self._client.key_value_set(self._own, word, allow_overwrite=True)

  def _exchange(self) -> None:
    """Gives this process's signs, and takes the others'; each call may hang."""
    beats = 0
    while not self.all_done.wait(BEAT):
      beats += 1
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._client.key_value_set(self._own, self._ended or str(beats), allow_overwrite=True)
        self._words = dict(self._client.key_value_dir_get(ALIVE))
        self._heard = time.monotonic()

  def _look(self, count: int) -> None:
    seen = {f"{ALIVE}{each}": ("", time.monotonic()) for each in range(count)}
    while not self.all_done.wait(BEAT):
      now = time.monotonic()
      seen |= {key: (word, now) for key, word in self._words.items() if word != seen[key][0]}
      silent = f"no sign of it for {self.patience} s"
      if now - self._heard > self.patience:
        self.give_up(f"process 0 is gone: {silent}")
      for key, (word, when) in seen.items():
        if word.startswith(FAILED):
          self.give_up(f"process {key.removeprefix(ALIVE)} ended: {word.removeprefix(FAILED)}")
        elif word != DONE and now - when > self.patience:
          self.give_up(f"process {key.removeprefix(ALIVE)} is gone: {silent}")
      if all(word == DONE for word, _ in seen.values()):
        self.all_done.set()

  def give_up(self, why: str) -> None:
    """Ends this process, unless it has failed by itself or all are done."""
    if self._ended in ("", DONE) and not self.all_done.is_set():
      main = pathlib.Path(sys.argv[0]).stem
      print(f"{main}: {why}; the same command goes on from what is saved", file=sys.stderr)
      sys.stderr.flush()
      os._exit(1)


_watch = _Watch()


class _Tunnel:
  """A way to the service of process 0 that jax's client never sees break off.

  Where the service is gone the watch ends this process, in its own words.
  """

  def __init__(self, far: str):
    """ValueError: `far` is no HOST:PORT."""
    host, _, port = far.rpartition(":")
    if not (host and port.isdigit()):
      raise ValueError(f"coordinator {far!r} must be HOST:PORT")
    program = [sys.executable, "-I", tunnel.__file__, host.strip("[]"), port]
    self._program = subprocess.Popen(program, stdin=-1, stdout=-1, text=True)
    self.address = f"127.0.0.1:{int(self._program.stdout.readline())}"

  def watch(self) -> None:
    """From now on the end of the service is for the watch to tell."""
    print(file=self._program.stdin, flush=True)
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self) -> None:
    self._program.stdout.readline()
    _watch.give_up("process 0 is gone")
