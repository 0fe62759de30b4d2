"""Who runs next: pure host code, without a clock of its own and without arrays.

Jobs wait in two classes. A job that is admitted gets the lowest free row of its canvas size, so
that few jobs fill few tiles, has the parts of its prompt cached one after the other, then decodes
until it is finished. In a tick all rows that decode take their turns, and what these leave of a
budget of query tokens goes to the prompts.
"""

import collections
import dataclasses
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence


class Overloaded(Exception):
  """The queue is full; `retry_after`: seconds after which there should be room."""

  def __init__(self, message: str, retry_after: int):
    super().__init__(message)
    self.retry_after = retry_after


@dataclasses.dataclass
class Job:
  """What the scheduler knows of a request. Times are seconds of the caller's clock."""

  key: int
  slots: int  # of its canvas
  offline: bool = False  # runs where nobody waits for it
  start_by: float = math.inf  # it is dropped if it still waits then
  end_by: float = math.inf  # and stopped if it still runs then
  fills: int = 0  # forwards that its prompt still needs before it may decide anything
  row: int = -1  # of its canvas size, once it is admitted


@dataclasses.dataclass(frozen=True)
class Limits:
  """What may wait, and what a tick may cost.

  Args:
    waiting: jobs in the queue.
    waiting_slots: slots of their canvases together.
    budget: query tokens of a tick. Rows that decode always go; prompts, and rows that compute their
      whole canvas anew (`refresh_rows` of the sampling config), have what is left. 0: twice what
      all rows cost when they decode, and as many whole canvases as a tick has turns for.
    patience: a waiting offline job, or a prompt that the budget leaves out, is passed over so many
      times, and then goes first.
  """

  waiting: int = 256
  waiting_slots: int = 1 << 20
  budget: int = 0
  patience: int = 8

  def __post_init__(self):
    for name, least in (("waiting", 1), ("waiting_slots", 1), ("budget", 0), ("patience", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"serving: {name}={getattr(self, name)} must be at least {least}")


class Scheduler:
  """dLLM-Serve (2512.17077): phases of all requests share a budget of query tokens a tick.

  First come, first served within a class, online before offline. Their scheduler counts a phase
  that computes the whole sequence by its length and one that reuses a cache by its block, and
  stops at the first request that does not fit; so one longer than the budget stops all for ever.
  Here a prompt is cut into parts, and waits for `patience` ticks at most.

  Args:
    rows: how many there are, by canvas size.
    decode: query tokens that a row which decodes costs a tick.
    fill: those of one part of a prompt.
  """

  def __init__(self, limits: Limits, rows: Mapping[int, int], *, decode: int, fill: int):
    self.limits, self.decode, self.fill = limits, decode, fill
    self.budget = limits.budget or 2 * decode * sum(rows.values())
    self.waiting: dict[bool, collections.deque[Job]] = {
      False: collections.deque(),
      True: collections.deque(),
    }
    self.running: dict[int, Job] = {}  # in order of admission
    self._free = {slots: list(range(n)) for slots, n in rows.items()}  # heaps
    self._passed = 0  # jobs admitted before an offline one that waits
    self._without = 0  # ticks that left no part of a prompt any budget
    self._seconds_each, self._last_end = 1.0, None

  def queued(self) -> Iterator[Job]:
    for jobs in self.waiting.values():
      yield from jobs

  def submit(self, job: Job) -> None:
    """Raises Overloaded, and then has not taken it."""
    jobs = sum(1 for _ in self.queued())
    slots = sum(each.slots for each in self.queued()) + job.slots
    if jobs >= self.limits.waiting or slots > self.limits.waiting_slots:
      seconds = max(1, math.ceil(self._seconds_each * jobs))
      raise Overloaded(f"{jobs} requests of {slots - job.slots} slots are waiting", seconds)
    self.waiting[job.offline].append(job)

  def remove(self, key: int, now: float) -> Job | None:
    """The job ends, wherever it is; its row is free. None: there is none, it has ended before."""
    if job := self.running.pop(key, None):
      heapq.heappush(self._free[job.slots], job.row)
      if self._last_end is not None:
        self._seconds_each += 0.1 * (now - self._last_end - self._seconds_each)
      self._last_end = now
      return job
    job = next((each for each in self.queued() if each.key == key), None)
    if job is not None:
      self.waiting[job.offline].remove(job)
    return job

  def late(self, now: float) -> list[Job]:
    """Jobs whose time is over; they are still to be removed."""
    waited = [job for job in self.queued() if now > min(job.start_by, job.end_by)]
    return waited + [job for job in self.running.values() if now > job.end_by]

  def admit(self) -> Iterator[Job]:
    """Jobs that get a row now. The caller says by `Job.fills` what their prompts need."""
    while job := self._next():
      self.waiting[job.offline].remove(job)
      job.row = heapq.heappop(self._free[job.slots])
      self.running[job.key] = job
      yield job

  def parts(self) -> list[tuple[Job, int]]:
    """Whose prompts go on in this tick, and by how many parts, in the order in which they are run.

    Of one canvas size they follow each other. The caller runs them; they are counted as done.
    """
    filling = [job for job in self.running.values() if job.fills]
    if not filling:
      return []
    decoding = len(self.running) - len(filling)
    left = (self.budget - decoding * self.decode) // self.fill
    if left < 1:
      self._without += 1
      if self._without <= self.limits.patience and decoding:
        return []
      left = 1
    self._without = 0
    chosen, unfinished = [], set()
    for job in filling:
      if job.slots not in unfinished and (n := min(job.fills, left)):
        job.fills, left = job.fills - n, left - n
        chosen.append((job, n))
      if job.fills:
        unfinished.add(job.slots)
    return chosen

  def refreshes(self, costs: Sequence[int], turns: int) -> list[int]:
    """In how many turns of this tick each tile may compute whole canvases: at least one of them.

    Args:
      costs: query tokens of one such turn, of each tile; 0: it has none.
    """
    if not self.limits.budget:
      return [turns] * len(costs)
    decoding = sum(not job.fills for job in self.running.values())
    left = max(self.budget - decoding * self.decode, 0) // max(len(costs), 1)
    return [min(turns, max(left // max(cost, 1), 1)) for cost in costs]

  def _next(self) -> Job | None:
    """The first that waits for a canvas size with a free row: online, unless offline waits long."""
    online, offline = (self._first(self.waiting[each]) for each in (False, True))
    if online is None or offline is None:
      return online or offline
    self._passed += 1
    if self._passed <= self.limits.patience:
      return online
    self._passed = 0
    return offline

  def _first(self, jobs: collections.deque[Job]) -> Job | None:
    return next((job for job in jobs if self._free[job.slots]), None)
