"""Says at a terminal what a long work is at: nobody should have to guess whether it hangs."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

EVERY = 10.0  # seconds


@contextlib.contextmanager
def told(now: str, every: float = EVERY) -> Iterator[Callable[[str], None]]:
  """Inside, a line on stderr tells every so many seconds what goes on, and for how long it has.

  Yields what changes the line. Where stderr is no terminal nothing is told.
  """
  if not sys.stderr.isatty():
    yield lambda _: None
    return
  began, ended, said = time.monotonic(), threading.Event(), now

  def change(now: str) -> None:
    nonlocal said
    said = now

  def tell() -> None:
    while not ended.wait(every):
      print(f"{said}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield change
  finally:
    ended.set()
    thread.join()
