"""Preemption: a run that is asked to stop first finishes what is at hand."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

STDERR = 2
ASKED = b"asked to stop: the update at hand ends and is saved; Ctrl-C again ends at once\n"


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
  """An event that SIGTERM or Ctrl-C sets, and says so; a second Ctrl-C raises KeyboardInterrupt."""
  event = threading.Event()

  def ask(number: int, _frame) -> None:
    if event.is_set() and number == signal.SIGINT:
      raise KeyboardInterrupt
    event.set()
    with contextlib.suppress(OSError):  # no print, which may be what the signal broke into
      os.write(STDERR, ASKED)

  # With several processes jax's own notice of preemption makes them stop at the same step.
  signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
  before = {number: signal.signal(number, ask) for number in signals}
  try:
    yield event
  finally:
    for handler in before.items():
      signal.signal(*handler)
