"""The engine: requests in, final tokens out, tick by tick. One thread drives it, others may ask.

A request gets a row of the smallest canvas that holds it. Its prompt is cached part by part beside
the rows that decode (`ExactBlock.fill`), or found in the prefix cache; then the row joins its tile
and takes part in the turns of `dlm.sampling.loop`, whatever the others do. A row's tokens are those
that it would have alone, to the bit: tiles have one compiled size, windows the row's own width, and
a prompt's parts do not depend on when they are run.

A tick dispatches its work and then reads what the tick before it did, so the host works while the
device does; a row is therefore known to be done one tick late.
"""

import contextlib
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dlm import build, parallel
from dlm.build import Pretrained, SamplingConfig
from dlm.data import Tokenizer
from dlm.generate import Completion, Request, read, spans
from dlm.models.apart import apart
from dlm.sampling import relay
from dlm.sampling.caching import ExactBlock
from dlm.sampling.canvas import make_canvas
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import Held, LoopState
from dlm.seeds import check_seed
from dlm.serving import compiles, programs
from dlm.serving.asks import Ask, Event, Hole
from dlm.serving.grammars import Words
from dlm.serving.holds import Hold, Part, together
from dlm.serving.memory import MemoryPlan, device_bytes, nbytes
from dlm.serving.prefixes import Chain, PrefixCache
from dlm.serving.scheduler import Job, Limits, Overloaded, Scheduler
from dlm.serving.text import TextStream
from dlm.types import Canvas, Params

LOOK_AHEAD = 8  # times as many asks as there are rows, of a list that is served offline


@dataclasses.dataclass(frozen=True)
class Serving:
  """How an engine is built.

  Args:
    sizes: slots of its canvases; a request gets the smallest that holds it.
    rows: of each size, over all devices, rounded up to whole tiles.
    row_tile: rows that a device computes together, whoever is in them; 0: all that it has of a
      size.
    exact: a row's tokens are those that it has alone, to the bit. False: a tick computes the first
      1, 2, 4, ... rows of a tile, as few as hold those that are there; tokens are then the same but
      for rounding.
    turns: of the loop a tick, between which rows neither come nor go.
    fill: slots of a prompt that one forward caches, for cache "block"; 0: prompts are computed by a
      forward over the whole canvas, in which the other rows of the tile wait.
    prefixes: pages of `fill` slots that the prefix cache holds; 0: none.
    own_settings: requests may have a temperature, a top-p and a threshold of their own. False: all
      are sampled as the config says, which spares the noise of candidates at temperature 0.
    constraints: requests may say what their holes may say, by one more program a size.
    memory: bytes that may be used of each device; 0: what it has.
  """

  sizes: tuple[int, ...] = (256, 1024)
  rows: int = 8
  row_tile: int = 0
  exact: bool = True
  turns: int = 4
  fill: int = 128
  prefixes: int = 0
  own_settings: bool = True
  constraints: bool = False
  memory: int = 0
  limits: Limits = dataclasses.field(default_factory=Limits)

  def __post_init__(self):
    for name in ("rows", "turns"):
      if getattr(self, name) < 1:
        raise ValueError(f"serving: {name}={getattr(self, name)} must be at least 1")
    for name in ("row_tile", "fill", "prefixes", "memory"):
      if getattr(self, name) < 0:
        raise ValueError(f"serving: {name}={getattr(self, name)} must not be negative (0: off)")
    if self.constraints and not self.own_settings:
      raise ValueError("serving: constraints=True needs own_settings=True")
    if not self.sizes or min(self.sizes) < 2:
      raise ValueError(f"serving: sizes={self.sizes} must name canvases of two slots or more")
    if self.prefixes and not 0 < self.fill < min(self.sizes):
      raise ValueError(
        f"serving: prefixes={self.prefixes} are pages of fill={self.fill} slots, which must be "
        f"fewer than those of the smallest canvas; sizes={self.sizes}"
      )
    if self.limits.waiting_slots < max(self.sizes):
      raise ValueError(
        f"serving: waiting_slots={self.limits.waiting_slots} must hold a canvas; sizes={self.sizes}"
      )


@dataclasses.dataclass
class _Live:
  """A request that is in the engine."""

  ask: Ask
  job: Job
  text: TextStream
  began: float
  start: int  # first slot of its first block
  seen: int = 0  # slots before this have been told, if they were to be
  tokens: int = 0  # that have been told
  ended: bool = False  # a stop id was among what is final: no other token will be told
  chain: Chain | None = None  # of its prompt's pages
  pages: list[int] = dataclasses.field(default_factory=list)  # those found in the prefix cache
  parts: int = 0  # of its prompt that are cached
  hold: Hold | None = None  # what it may write, if it is held to anything


@dataclasses.dataclass
class _Canvases:
  """All rows of one canvas size."""

  run: programs.Programs
  tiles: list[LoopState]
  keys: list[list[int | None]]  # whose row it is, tile by tile; None: nobody's
  filling: LoopState | None = None  # the row whose prompt is being cached
  whose: int | None = None


class Engine:
  """Serves one sampler.

  `mesh`: rows are spread over its devices, and parameters where it splits more than rows; None: one
  device.

  Attributes:
    compiles: programs that were compiled since it is ready: each is a bug.
    waited: seconds of its ticks in which the host had nothing to do but wait for the device.
    memory: what it holds, see `MemoryPlan`.
    prefixes: the prefix cache, which counts its hits.
  """

  def __init__(
    self,
    sampler: Sampler,
    tokenizer: Tokenizer,
    params: Params,
    serving: Serving,
    *,
    align: str,
    mesh: jax.sharding.Mesh | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    mesh = mesh or parallel.make_mesh(devices=jax.local_devices()[:1])
    self.sampler, self.serving = _served(sampler, serving, mesh), serving
    self.words = None
    if serving.constraints:
      self.words = Words(tokenizer, (*sampler.forbidden, sampler.mask_id), sampler.eos_ids)
    self.tokenizer, self.align, self._clock = tokenizer, align, clock
    device, shards = mesh.devices.flat[0], parallel.batch_shards(mesh)
    self._params = params
    if mesh.size == 1:
      self._params = apart(jax.device_put(params, device))
    elif parallel.splits_data_alone(mesh):
      self._params = jax.device_put(params, programs.whole(mesh))
    # A block's tokens are final, unless the policy goes back or a text is cut when it is done.
    self._streams = self.sampler.scope == "block" and not sampler.least_entropy
    each = -(-serving.rows // shards)  # rows of a device
    self._tile = min(serving.row_tile or each, each) * shards
    # Loops that put rows together: one a device, or one that XLA splits.
    self._loops = shards if parallel.splits_data_alone(mesh) else 1
    self._tiles = -(-serving.rows // self._tile)
    paged = serving.prefixes > 0
    self._page_shapes = None
    if paged:
      self._page_shapes = programs.shapes_of_pages(self.sampler, mesh, serving.prefixes)
    self._run = {
      slots: programs.compiled(
        self.sampler,
        self._params,
        mesh,
        slots=slots,
        tile=self._tile,
        fills=serving.fill > 0,
        pages=self._page_shapes,
        align=align,
        own_settings=serving.own_settings,
        exact=serving.exact,
        sets=self.words and (_most_sets(self.sampler), -(-self.words.size // 32)),
      )
      for slots in sorted(set(serving.sizes))
    }
    self.memory = MemoryPlan(
      limit=serving.memory or device_bytes(device),
      weights=nbytes(self._params, device),
      row={slots: nbytes(run.row) for slots, run in self._run.items()},
      rows=self._tiles * self._tile // shards,
      pages=nbytes(self._page_shapes),
      temporaries=max(run.temporaries for run in self._run.values()),
    )
    self.memory.check()
    self._keys = itertools.count()
    self._live: dict[int, _Live] = {}
    self._cancelled: set[int] = set()
    self._work = threading.Condition()
    self._empty()
    self.compiles, self.waited = 0, 0.0
    self._warm()

  # -----------------------------------------------------------------------------------------------
  # From any thread

  def submit(self, ask: Ask) -> int:
    """Takes a request; what becomes of it is told under the key that is returned.

    Raises:
      ValueError: it asks for what cannot be served.
      Overloaded: too many wait.
    """
    self._check(ask)
    slots = min(slots for slots in self._run if slots >= self._room(ask.request))
    hold = self._hold(ask, slots) if ask.holes else None
    now = self._clock()
    with self._work:
      key = next(self._keys)
      job = Job(key, slots, ask.offline, now + ask.start_within, now + ask.end_within)
      self.scheduler.submit(job)
      first = int(np.argmax(ask.request.open))
      block = self.sampler.block
      start = first // block * block if self.align == "canvas" else first
      text = TextStream(self.tokenizer, ask.stops)
      self._live[key] = _Live(ask, job, text, began=now, start=start, hold=hold)
      self._work.notify_all()
    return key

  def cancel(self, key: int) -> None:
    """Ends a request at the next tick, if it has not ended before."""
    with self._work:
      self._cancelled.add(key)
      self._work.notify_all()

  @property
  def idle(self) -> bool:
    """Whether a tick would find nothing to do."""
    return not (self._live or self._cancelled)

  def wait(self, seconds: float) -> bool:
    """Until there is something to do, or for so long; whether there is."""
    with self._work:
      return self._work.wait_for(lambda: not self.idle, seconds)

  # -----------------------------------------------------------------------------------------------
  # From the thread that drives it

  def tick(self) -> list[Event]:
    """One turn of the crank: what became final, of whom."""
    before, events = compiles.count(), []
    try:
      with self._work:
        self._drop(events)
        for job in self.scheduler.admit():
          self._begin(job)
        for job, parts in self.scheduler.parts():
          self._fill(job, parts)
        last, self._dispatched = self._dispatched, self._decode()
      for keys, report in last:
        began = time.perf_counter()
        report = jax.device_get(report)
        self.waited += time.perf_counter() - began
        with self._work:
          for row, key in enumerate(keys):
            if key in self._live:
              events += self._read(key, report, row)
    except jax.errors.JaxRuntimeError:
      # What was donated is gone: all rows end, and the next tick starts from nothing.
      with self._work:
        running = list(self.scheduler.running)
        events += [self._end(key, fault="engine_restarted") for key in running]
        self._empty(self.scheduler)
    self.compiles += compiles.count() - before
    return events

  def run(self, asks: Iterable[Ask]) -> list[Completion | str]:
    """Offline: what becomes of each, in their order; a fault by its name. Nobody else may ask."""
    return list(self.ends(list(asks)))

  def ends(self, asks: Sequence[Ask]) -> Iterator[Completion | str]:
    """As `run`, each as soon as it and all before it have ended.

    With a prefix cache prompts that begin alike go in one after the other, so that what they share
    is cached when the next needs it (BatchLLM, 2412.03594); so far ahead only that few of those
    that have ended wait for one that has not begun.
    """
    order, ahead = list(range(len(asks))), LOOK_AHEAD * self._tiles * self._tile
    if self._pages is not None:
      order = [
        i
        for first in range(0, len(asks), ahead)
        for i in sorted(order[first : first + ahead], key=lambda i: asks[i].request.tokens.tolist())
      ]
    order.reverse()
    done: dict[int, Completion | str] = {}
    at: dict[int, int] = {}
    told = 0
    while told < len(asks):
      with contextlib.suppress(Overloaded):
        while order:
          at[self.submit(asks[order[-1]])] = order[-1]
          order.pop()
      for event in self.tick():
        if event.completion or event.fault:
          done[at.pop(event.key)] = event.completion or event.fault
      while told in done:
        yield done.pop(told)
        told += 1

  # -----------------------------------------------------------------------------------------------
  # Inside a tick

  def _empty(self, scheduler: Scheduler | None = None) -> None:
    """Nothing on the device but the weights. `scheduler`: one whose queue is kept."""
    serving = self.serving
    self._pages = None if self._page_shapes is None else programs.empty_pages(self._page_shapes)
    self.prefixes = PrefixCache(serving.prefixes, max(serving.fill, 1))
    self._dispatched: list[tuple[tuple[int | None, ...], programs.Report]] = []
    self._canvases = {
      slots: _Canvases(
        run,
        [run.empty() for _ in range(self._tiles)],
        [[None] * self._tile for _ in range(self._tiles)],
      )
      for slots, run in self._run.items()
    }
    self.scheduler = scheduler or Scheduler(
      serving.limits,
      {slots: self._tiles * self._tile for slots in self._run},
      decode=self.sampler.block * serving.turns,
      fill=max(serving.fill, 1),
    )

  def _warm(self) -> None:
    """A request of each size runs through, so that all is compiled that is ever called."""
    for slots in self._run:
      room = max(slots - self.sampler.policy.spare, 1)
      free = np.arange(room) == room - 1
      tokens = np.where(free, self.sampler.mask_id, 0).astype(np.int32)
      for end in self.run([Ask(Request(0, "", tokens, free), tenant="\0")] * 2):
        if isinstance(end, str):
          raise ValueError(f"serving: a row of {slots} slots of id 0 ends by {end!r}")
    self.prefixes.hits = self.prefixes.misses = self.compiles = 0
    self.waited = 0.0

  def _drop(self, events: list[Event]) -> None:
    now = self._clock()
    ended = {key: "cancelled" for key in self._cancelled}
    self._cancelled.clear()
    for job in self.scheduler.late(now):
      waits = job.row < 0 and now <= job.end_by
      ended.setdefault(job.key, "queue_timeout" if waits else "request_timeout")
    events += [self._end(key, fault=fault) for key, fault in ended.items() if key in self._live]

  def _begin(self, job: Job) -> None:
    """The row of a job that was admitted; it waits for its prompt, or joins its tile."""
    live = self._live[job.key]
    ask = live.ask
    live.began = self._clock()
    if self._pages is not None:
      live.chain = self.prefixes.chain(ask.request.tokens[: live.start], ask.tenant)
    job.fills = self._missing(live)
    if not job.fills:
      self._join(job, self._row(live))

  def _missing(self, live: _Live) -> int:
    """Parts of a prompt that are still to be cached, now that others may have cached some."""
    if live.chain is not None:
      live.pages = self.prefixes.hold(live.chain)
      live.parts = len(live.pages)
    left, fill, parts = live.start - live.parts * self.serving.fill, self.serving.fill, 0
    while fill and left > self.sampler.block:  # as ExactBlock fills, until a block or less is left
      parts, left = parts + 1, left - fill
    return parts

  def _row(self, live: _Live) -> LoopState:
    """The state of a row before its first forward, with what is cached of its prompt."""
    ask, request = live.ask, live.ask.request
    canvas = make_canvas(
      [request.tokens], [request.open], [request.id],
      samples=[request.sample], slots=live.job.slots, block=self.sampler.block, align=self.align,
      mask_id=self.sampler.mask_id, seed=ask.seed,
    )  # fmt: skip
    temperature = self.sampler.temperature if ask.temperature is None else ask.temperature
    threshold = math.nan if ask.threshold is None else ask.threshold
    spec, run = self.sampler.spec(), self._run[live.job.slots]
    top_p = spec.top_p if ask.top_p is None else ask.top_p
    if temperature == 0 and spec.confidence != "shaped":
      top_p = 1.0  # it would cut nothing, by seven passes
    own = [np.full(1, value, np.float32) for value in (temperature, threshold, top_p)]
    state = run.begin(canvas, *(own if self.serving.own_settings else [None] * 3))
    for place, number in enumerate(live.pages):
      state = run.load(state, self._pages, np.int32(number), np.int32(place))
    return state

  def _fill(self, job: Job, parts: int) -> None:
    """The next parts of a prompt; after the last of them its row joins its tile."""
    canvases, live = self._canvases[job.slots], self._live[job.key]
    if canvases.filling is None:
      missing = self._missing(live)
      parts = min(parts, missing)
      job.fills = missing - parts
      canvases.filling, canvases.whose = self._row(live), job.key
    run, state = canvases.run, canvases.filling
    if parts:
      state, _ = run.fill(self._params, state, np.ones(1, bool), np.int32(parts), np.int32(0))
    for place in range(live.parts, live.parts + parts):
      whole = live.chain is not None and place == live.chain.held < len(live.chain.names)
      if whole and (number := self.prefixes.add(live.chain)) is not None:
        self._pages = run.save(self._pages, state, np.int32(number), np.int32(place))
    live.parts += parts
    canvases.filling = state
    if not job.fills:
      canvases.filling = canvases.whose = None
      self._join(job, state)

  def _join(self, job: Job, state: LoopState) -> None:
    canvases = self._canvases[job.slots]
    tile, place = divmod(job.row, self._tile)
    canvases.keys[tile][place] = job.key
    if canvases.run.insert is not None:
      state = canvases.run.insert(canvases.tiles[tile], state, np.int32(place))
    canvases.tiles[tile] = state

  def _decode(self) -> list[tuple[tuple[int | None, ...], programs.Report]]:
    """The turns of this tick, of every tile that somebody is in."""
    turns = np.int32(self.serving.turns)
    refreshes, dispatched = self._refreshes(), []
    for slots, canvases in self._canvases.items():
      for i, keys in enumerate(canvases.keys):
        holds = {key: self._live[key].hold for key in keys if key is not None}
        plain = tuple(key if holds.get(key, True) is None else None for key in keys)
        held = tuple(key if (own := holds.get(key)) and own.ready else None for key in keys)
        last = max((row for row, key in enumerate(plain) if key is not None), default=0)
        decode = canvases.run.decode_first(last + 1)
        for own, run, rest in (
          (plain, decode, (turns, np.int32(refreshes.get((slots, i), 0)))),
          (held, canvases.run.held, (self._rule(held, holds),)),
        ):
          if any(key is not None for key in own):
            live_B = np.array([key is not None for key in own])
            canvases.tiles[i], report = run(self._params, canvases.tiles[i], live_B, *rest)
            dispatched.append((own, report))
    return dispatched

  def _refreshes(self) -> dict[tuple[int, int], int]:
    """In how many turns of this tick the rows of each tile may compute their whole canvas."""
    if not self.sampler.refresh_rows:  # nobody asks
      return {}
    busy = [
      (slots, i)
      for slots, canvases in self._canvases.items()
      for i, keys in enumerate(canvases.keys)
      if any(key is not None for key in keys)
    ]
    rows = min(self.sampler.refresh_rows * self._loops, self._tile)
    costs = [slots * rows for slots, _ in busy]
    return dict(zip(busy, self.scheduler.refreshes(costs, self.serving.turns), strict=True))

  def _rule(self, keys: tuple[int | None, ...], holds: dict[int, Hold | None]) -> Held | None:
    """What the rows of a tile may write in the next forward; until it is read they do not run."""
    own = {place: holds[key] for place, key in enumerate(keys) if key is not None}
    for hold in own.values():
      hold.ready = False
    return together(own, len(keys)) if own else None

  def _read(self, key: int, report: programs.Report, row: int) -> list[Event]:
    """What a report says of a row that is still wanted."""
    live, canvas = self._live[key], report.canvas
    if report.broken_B[row]:
      return [self._end(key, fault="nonfinite_logits")]
    if live.hold is not None and not canvas.done_B[row]:
      live.hold.read(canvas.tokens_BxL[row])
    done, told = bool(canvas.done_B[row]), live.text.told
    tokens, logprobs, text = [], [], ""
    wanted = live.ask.streams or live.ask.stops
    if not done and self._streams and wanted and live.ask.request.continues:
      final = int(canvas.start_B[row])
      slot_N = self._news(live, canvas, row, final)
      tokens, logp = (x[row, slot_N].tolist() for x in (canvas.tokens_BxL, canvas.logp_BxL))
      logprobs = [each if math.isfinite(each) else None for each in logp]
      text = live.text.push(tokens)
    if not done and not live.text.stopped:
      live.tokens += len(tokens)
      draft = self._draft(live, canvas, row) if live.ask.drafts else None
      return [Event(key, tokens, logprobs, text, draft)] if tokens or draft else []
    if not done:  # a stop string: as if no later slot had been written
      when_BxL = np.array(canvas.when_BxL)
      when_BxL[row, final:] = -1
      canvas = canvas.replace(when_BxL=when_BxL)
    completion = read(
      canvas, row, live.ask.request, sampler=self.sampler, tokenizer=self.tokenizer,
      stops=live.ask.stops, seconds=self._clock() - live.began,
    )  # fmt: skip
    self._end(key)
    rest = slice(live.tokens, None)
    return [
      Event(
        key,
        completion.tokens[rest],
        completion.logprobs[rest],
        completion.text[told:],
        completion=completion,
        holes=self._holes(live, report, row, completion),
      )
    ]

  def _holes(
    self, live: _Live, report: programs.Report, row: int, done: Completion
  ) -> list[Hole] | None:
    """What is in each run of open slots, and how probable it was."""
    request, canvas = live.ask.request, report.canvas
    if request.continues and live.hold is None:
      return None
    free_L = canvas.open_BxL[row, : int(canvas.length_B[row])]
    texts = [done.text] if request.continues else done.spans
    holes = []
    for text, (first, end) in zip(texts, spans(request.open, free_L), strict=True):
      ids_N = canvas.tokens_BxL[row, first:end]
      at_N = first + np.flatnonzero(~np.isin(ids_N, (*self.sampler.eos_ids, self.sampler.mask_id)))
      entropy_BxL = report.entropy_BxL
      logprob = float(canvas.logp_BxL[row, at_N].sum())
      entropy = math.nan if entropy_BxL is None else float(entropy_BxL[row, at_N].sum())
      known = (each if math.isfinite(each) else None for each in (logprob, entropy))
      holes.append(Hole(text, *known))
    return holes

  def _news(self, live: _Live, canvas: Canvas, row: int, final: int) -> np.ndarray:
    """Slots before `final` that were written and not told yet, up to the first stop id."""
    slot_N = np.arange(live.seen, max(final, live.seen))
    live.seen = max(final, live.seen)
    ids_N = canvas.tokens_BxL[row, slot_N]
    written_N = canvas.open_BxL[row, slot_N] & (canvas.when_BxL[row, slot_N] >= 0)
    slot_N, ids_N = (x[written_N & (ids_N != self.sampler.mask_id)] for x in (slot_N, ids_N))
    stops = np.flatnonzero(np.isin(ids_N, self.sampler.eos_ids))
    if live.ended or len(stops):
      slot_N = slot_N[: 0 if live.ended else stops[0]]
      live.ended = True
    return slot_N

  def _draft(self, live: _Live, canvas: Canvas, row: int) -> list[tuple[int, int]]:
    slot_N = np.flatnonzero(canvas.open_BxL[row])
    slot_N = slot_N[slot_N >= live.seen]
    return list(zip(slot_N.tolist(), canvas.tokens_BxL[row, slot_N].tolist(), strict=True))

  def _end(self, key: int, fault: str | None = None) -> Event:
    """The request leaves the engine; its row is free from the next tick on."""
    live = self._live.pop(key)
    job = self.scheduler.remove(key, self._clock())
    if live.chain is not None:
      self.prefixes.release(live.chain)
    if job.row >= 0:
      canvases = self._canvases[job.slots]
      tile, place = divmod(job.row, self._tile)
      if canvases.keys[tile][place] == key:
        canvases.keys[tile][place] = None
      elif canvases.whose == key:
        canvases.filling = canvases.whose = None
    return Event(key, fault=fault)

  def _room(self, request: Request) -> int:
    """Slots that it may come to fill."""
    return len(request.tokens) + self.sampler.policy.spare

  def _hold(self, ask: Ask, slots: int) -> Hold:
    """What its row may write, forward by forward.

    Raises:
      ValueError: rows cannot be held here, or not to that.
    """
    request, words = ask.request, self.words
    if words is None:
      raise ValueError("request: holes need a server with serving.constraints=True")
    if why := _never_held(self.sampler):
      raise ValueError(
        f"request: holes cannot be held to a grammar with {self.sampler.policy}: {why}"
      )
    if ask.stops:
      raise ValueError("request: what its holes may say is said, so it has no stop strings")
    runs = spans(request.open, request.open)
    if len(ask.holes) != len(runs):
      raise ValueError(f"request: {len(ask.holes)} holes are described, and {len(runs)} are there")
    holes = []
    for grammar, (first, end) in zip(ask.holes, runs, strict=True):
      last = end == len(request.open)
      if grammar is not None or not last:  # else it is free
        holes.append(Part(first, end, words.within(grammar or words.any(), last)))
    tokens = np.zeros(slots, np.int32)
    tokens[: len(request.tokens)] = np.where(request.open, self.sampler.mask_id, request.tokens)
    most = _most_sets(self.sampler)
    return Hold(holes, tokens, self.sampler.mask_id, most, words.size)

  def _check(self, ask: Ask) -> None:
    """Raises ValueError where a request cannot be served, before it waits for anything."""
    check_seed(ask.seed)
    slots = self._room(ask.request)
    if slots > max(self._run):
      raise ValueError(
        f"request: {slots} tokens, those to be written included, exceed the largest canvas of "
        f"{max(self._run)} slots"
      )
    if not ask.request.open.any():
      raise ValueError("request: nothing to write (no open position)")
    for name in ("temperature", "top_p", "threshold"):
      if getattr(ask, name) is not None and not self.serving.own_settings:
        raise ValueError(
          f"request: {name}={getattr(ask, name)} needs a server with serving.own_settings=True"
        )
    warm = ask.temperature
    if warm is not None and not (0 <= warm < math.inf):
      raise ValueError(f"request: temperature={warm} must be finite and not negative")
    if warm and self.sampler.spec().chooses:
      raise ValueError(f"request: temperature={warm} must be 0 with {self.sampler.policy}")
    if ask.top_p is not None and not 0 < ask.top_p <= 1:
      raise ValueError(f"request: top_p={ask.top_p} must lie in (0, 1]")
    if ask.threshold is not None:
      if not self.sampler.policy.adjustable:
        raise ValueError(
          f"request: threshold={ask.threshold} is not a setting of {self.sampler.policy}"
        )
      if not 0 <= ask.threshold <= 1:
        raise ValueError(f"request: threshold={ask.threshold} must lie in [0, 1]")
    if "" in ask.stops:
      raise ValueError("request: a stop string must not be empty")
    if ask.stops and not ask.request.continues:
      raise ValueError("request: a text that is filled in has no stop strings")


def _most_sets(sampler: Sampler) -> int:
  """Sets that a row may need in a forward: one for each slot of a block, within reason."""
  return min(sampler.block, 64)


def _never_held(sampler: Sampler) -> str:
  """Why rows cannot be held to sets of tokens; "": they can."""
  policy = sampler.policy
  reasons = {
    "it drafts": policy.draft_span or policy.proposals or policy.own_drafts,
    "it inserts and deletes": policy.shifts,
    "it slides on": policy.slides,
    "it starts from random ids": policy.renoises,
    "it works ahead of its block": policy.works_ahead,
  }
  return next((reason for reason, power in reasons.items() if power), "")


def engine(
  config: SamplingConfig | Mapping[str, Any], trained: Pretrained, serving: Serving
) -> Engine:
  """What serves a checkpoint on the devices of this process, as the config's mesh has them.

  Commits that the config leaves open ("auto") are separate forwards in tiles of several rows.
  """
  sampler, own = build.sampling(config, trained.model, trained.facts)
  together = min(serving.row_tile or serving.rows, serving.rows) > 1
  if SamplingConfig.of(config).commit == "auto" and together:
    sampler = relay.of_one_width(sampler)
  mesh = own.mesh.make(jax.local_devices())
  params, _ = trained.on(mesh, own.weights)
  return Engine(sampler, trained.tokenizer, params, serving, align=own.align, mesh=mesh)


def _served(sampler: Sampler, serving: Serving, mesh: jax.sharding.Mesh) -> Sampler:
  """The sampler, with rows that owe nothing to their neighbours and prompts in parts."""
  if sampler.guidance:
    raise ValueError(f"serving: guidance={sampler.guidance} must be 0: it takes two rows a request")
  if sampler.drafter is not None:
    raise ValueError(f"serving: {sampler.policy} needs a second model, which is not served")
  if not serving.exact and mesh.size > 1:
    raise ValueError(
      f"serving: exact=False is for one device, not a mesh of {dict(mesh.shape)}: tiles are spread"
    )
  sampler, plan, parts = build.on_mesh(sampler, mesh), sampler.plan, 0
  if serving.fill and not parallel.splits_data_alone(mesh):
    raise ValueError(
      f"serving: fill={serving.fill} needs devices that hold all parameters, not a mesh of "
      f"{dict(mesh.shape)}; 0: off"
    )
  if serving.fill:
    if type(plan) is not ExactBlock:
      raise ValueError(f"serving: fill={serving.fill} needs cache 'block', not {plan}; 0: off")
    if plan.fill != serving.fill:  # forwards that the sampler does not count on
      parts = -(-max(serving.sizes) // serving.fill)
      plan = dataclasses.replace(plan, fill=serving.fill)
  return dataclasses.replace(
    sampler, plan=plan, own_width=True, max_forwards=sampler.max_forwards + parts
  )
