"""The thread that drives an engine, and what asyncio sees of it: a feed of events for each call."""

import asyncio
import collections
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence

from dlm.serving.asks import Ask, Event
from dlm.serving.engine import Engine
from dlm.serving.scheduler import Overloaded

BROKEN_ROWS, BROKEN_WITHIN = 3, 60.0  # rows without finite logits, in seconds: something is wrong
ENGINE_DIED = "engine_died"  # a fault, beside those of the engine


class Feed:
  """What becomes of the asks of one call, in the order in which it does. Close it in the end."""

  def __init__(self, runner: "Runner", loop: asyncio.AbstractEventLoop):
    self._runner, self._loop = runner, loop
    self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
    self.live: dict[int, int] = {}  # of keys that have not ended: which ask it is

  def put(self, event: Event) -> None:
    """From the engine's thread."""
    ask = self.live[event.key]
    if event.completion or event.fault:
      del self.live[event.key]
    self._loop.call_soon_threadsafe(self._events.put_nowait, (ask, event))

  async def events(self, asks: int) -> AsyncIterator[tuple[int, Event]]:
    """Until each of so many asks has ended."""
    while asks:
      ask, event = await self._events.get()
      asks -= bool(event.completion or event.fault)
      yield ask, event

  def close(self) -> None:
    """Cancels what still runs: its rows are free at the next tick."""
    self._runner.cancel(self)


class Runner:
  """Drives an engine in a thread of its own until it is stopped, or fails.

  Args:
    told: called in that thread after each tick, with its seconds and its events.
  """

  def __init__(self, engine: Engine, told: Callable[[float, Sequence[Event]], None]):
    self.engine, self._told = engine, told
    self._feeds: dict[int, Feed] = {}
    self._lock = threading.Lock()
    self._stopping = False
    self._broken: collections.deque[float] = collections.deque(maxlen=BROKEN_ROWS)
    self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)

  def start(self) -> None:
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread after its tick."""
    self._stopping = True
    self._thread.join()

  @property
  def alive(self) -> bool:
    return self._thread.is_alive()

  @property
  def healthy(self) -> bool:
    """It runs, and the model has not just said NaN again and again."""
    often = len(self._broken) == BROKEN_ROWS
    return self.alive and not (often and time.monotonic() - self._broken[0] < BROKEN_WITHIN)

  @property
  def busy(self) -> bool:
    """Whether a call has not ended."""
    return bool(self._feeds)

  async def submit(self, asks: Sequence[Ask]) -> Feed:
    """All of them or none; ValueError and Overloaded as `Engine.submit`."""
    feed = Feed(self, asyncio.get_running_loop())
    await asyncio.to_thread(self._submit, feed, asks)
    return feed

  def _submit(self, feed: Feed, asks: Sequence[Ask]) -> None:
    for place, ask in enumerate(asks):
      try:
        with self._lock:  # so that nothing is told of the key before its feed is known
          key = self.engine.submit(ask)
          feed.live[key], self._feeds[key] = place, feed
      except (ValueError, Overloaded):
        self.cancel(feed)
        raise

  def cancel(self, feed: Feed) -> None:
    with self._lock:
      for key in feed.live:
        del self._feeds[key]
        self.engine.cancel(key)
      feed.live.clear()

  def give_up(self, fault: str) -> None:
    """Ends all calls by this fault."""
    with self._lock:
      keys = list(self._feeds)
    for key in keys:
      self.engine.cancel(key)
    self._deliver([Event(key, fault=fault) for key in keys])

  def _drive(self) -> None:
    try:
      while not self._stopping:
        if self.engine.wait(0.1):
          began = time.perf_counter()
          events = self.engine.tick()
          self._told(time.perf_counter() - began, events)
          self._deliver(events)
    except BaseException:
      traceback.print_exc(file=sys.stderr)
    finally:
      self.give_up(ENGINE_DIED)

  def _deliver(self, events: Sequence[Event]) -> None:
    with self._lock:
      for event in events:
        if event.fault == "nonfinite_logits":
          self._broken.append(time.monotonic())
        if (feed := self._feeds.get(event.key)) is None:
          continue  # it was cancelled
        if event.completion or event.fault:
          del self._feeds[event.key]
        feed.put(event)
