"""A run is asked to stop: what is at hand is finished first."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
  """The event that SIGTERM and Ctrl-C set meanwhile; a second Ctrl-C ends the process at once."""
  event = threading.Event()

  def ask(number: int, _frame) -> None:
    if event.is_set() and number == signal.SIGINT:
      raise KeyboardInterrupt
    event.set()

  # With several processes jax's own notice of preemption makes them stop at the same step.
  signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
  before = {number: signal.signal(number, ask) for number in signals}
  try:
    yield event
  finally:
    for handler in before.items():
      signal.signal(*handler)
