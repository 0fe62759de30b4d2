"""THE sampling path: prompt -> Canvas -> [ plan -> denoise -> score -> decide -> commit ]* -> text.

The bracket is `dlm.sampling.loop`; this file puts requests on canvases, runs the loop over every
local device, and reads completions off the result.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dlm import build, masks, parallel
from dlm.build import Pretrained, SamplingConfig, Training
from dlm.data import Tokenizer, encode_infill
from dlm.models.apart import apart
from dlm.sampling import loop, sizes, variety
from dlm.sampling.canvas import make_canvas
from dlm.sampling.sampler import Sampler
from dlm.sampling.state import LoopState, axes_of
from dlm.types import FORWARD_KINDS, Canvas, Params


@dataclasses.dataclass(frozen=True)
class Request:
  """Token ids of one row and where the sampler may write; `id` and `sample` seed its noise."""

  id: int
  prompt: str
  tokens: np.ndarray
  open: np.ndarray
  sample: int = 0  # 0, 1, ... of the same prompt

  @property
  def continues(self) -> bool:
    """A prompt goes on to its end; a text that is filled in also has given tokens later."""
    return bool(self.open[int(np.argmax(self.open)) :].all())

  def samples(self, n: int) -> "list[Request]":
    """As `n` requests, each with noise of its own; the first is the request itself."""
    return [dataclasses.replace(self, sample=sample) for sample in range(n)]

  @classmethod
  def from_text(
    cls,
    id: int,
    text: str,
    tokenizer: Tokenizer,
    *,
    slots: int,
    max_new_tokens: int = 0,
    bos: bool = False,
    infill: bool = False,
  ) -> "Request":
    """A prompt to continue, or with `infill` a text to fill in where it holds `[[n]]`.

    A prompt is followed by `max_new_tokens` open positions; 0: as many as the canvas of `slots`
    holds. `infill`: `[[n]]` stands for n open positions, `[[[n]]` for the text `[[n]]`; a text
    without them is a prompt. `bos`: before it stands the token that begins texts. ValueError where
    it does not fit.
    """
    try:
      tokens, free = encoded(text, tokenizer, bos=bos, infill=slots if infill else None)
    except ValueError as error:
      raise ValueError(f"prompt {id}: {error}") from error
    if not free.any():
      room = {"slots": slots, "max_new_tokens": max_new_tokens}
      return cls.from_ids(id, text, tokens, tokenizer.mask_id, **room)
    if len(tokens) > slots:
      raise ValueError(f"prompt {id}: {len(tokens)} tokens exceed {_canvas_of(slots)}")
    return cls(id, text, tokens, free)

  @classmethod
  def from_ids(
    cls, id: int, prompt: str, ids: np.ndarray, mask_id: int, *, slots: int, max_new_tokens: int = 0
  ) -> "Request":
    """Ids to continue, as `from_text` continues a prompt."""
    new = max_new_tokens or slots - len(ids)
    if new < 1 or len(ids) + new > slots:
      raise ValueError(
        f"prompt {id}: {len(ids)} tokens and {max(new, 1)} new ones exceed {_canvas_of(slots)}"
      )
    tokens = np.concatenate([ids, np.full(new, mask_id, np.int32)])
    return cls(id, prompt, tokens, np.arange(len(tokens)) >= len(ids))


def _canvas_of(slots: int) -> str:
  return f"the canvas of {slots} slots (config.slots; 0: the length of the model's training rows)"


def encoded(
  text: str, tokenizer: Tokenizer, *, bos: bool = False, infill: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Ids of a text and which of them are open.

  `infill`: those that `[[n]]` stands for, so many at most. None: none, and `[[n]]` is text.
  """
  if infill is not None:
    tokens, free = encode_infill(text, tokenizer, infill)
  else:
    tokens = tokenizer.encode(text)
    free = np.zeros(len(tokens), bool)
  if bos:
    tokens, free = np.append(np.int32(tokenizer.bos_id), tokens), np.append(False, free)
  return tokens, free


# A stop id, a stop string, tokens that vary too little; all slots are written, or max_forwards were
# spent with masks left before the text's end.
REASONS = ("stop_id", "stop_string", "least_entropy", "length", "max_forwards")


@dataclasses.dataclass(frozen=True)
class Completion:
  """What became of a request."""

  id: int
  sample: int
  prompt: str
  text: str  # what was written, up to its end; for infilling the whole text
  spans: list[str]  # each open span as text
  tokens: list[int]  # ids written, in order of position, before the text's end
  logprobs: list[float | None]  # of each, see `Canvas.logp_BxL`; None: its forward gave none
  when: list[int]  # by position of the row: the forward that wrote it, -1 where given
  row: list[int]  # the row's ids as it ended
  forwards: dict[str, int]  # by kind: full, window, commit; with a drafter also draft
  queries: int  # query positions that it needed of those forwards
  # Those computed for it, its share of padding and idle rows too: other neighbours, another share.
  computed: float = dataclasses.field(compare=False)
  remasked: int  # tokens that were written and masked again
  tpf: float  # tokens per forward
  reason: str  # what ended the text: one of REASONS
  seconds: float  # wall time of the rows that ran with it, without compilation

  @property
  def finished(self) -> bool:
    return self.reason != "max_forwards"


class Generator:
  """Runs one sampler over many requests, in batches of one shape: it compiles once a canvas size.

  A row's tokens never depend on its neighbours but by rounding: matmuls of another shape may sum in
  another order, which decides where two candidates lie that near, as identical slots do. A request
  runs with others of its own canvas size, so its canvas is always the same. What is left is the
  number of rows a device computes together, and, with a cache, the width of the window that they
  share. `row_tile` fixes both: a row alone, in a batch of any size and order, on one device or on
  several that split the batch ("data"), is then the same to the bit. Another kind of device or
  version of XLA may round otherwise.

  Args:
    align: "canvas" or "prompt", see `make_canvas`.
    batch: rows of a batch, over all devices; rounded up to whole tiles.
    row_tile: rows that a device computes together, done ones among them where requests are too few;
      a batch is several runs of that one program. 0: the device's share of a batch, and neighbours
      share windows.
    stops: strings that end a completion where the first of them begins, but no text that is filled
      in. They are looked for when a row is done, so they save no forward.
    driver: "shard_map" or "pmap"; both run the same per-shard loop.
  """

  def __init__(
    self,
    sampler: Sampler,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    *,
    align: str = "canvas",
    batch: int = 8,
    row_tile: int = 0,
    stops: Sequence[str] = (),
    driver: str = "shard_map",
  ):
    if batch < 1:
      raise ValueError(f"Generator: batch={batch} must be at least 1")
    if row_tile < 0:
      raise ValueError(f"Generator: row_tile={row_tile} must not be negative (0: off)")
    if "" in stops:
      raise ValueError("Generator: a stop string must not be empty")
    own = "canvas" if isinstance(sampler.sees, masks.BlockCausal) else "prompt"
    in_blocks = isinstance(sampler.sees, masks.BlockCausal | masks.PromptBlocks)
    if sampler.plan.commits and in_blocks and align != own:
      raise ValueError(
        f"a cache is exact only in blocks that are the model's own: align={align!r} cuts others; "
        f"use {own!r}, or cache 'none'"
      )
    if row_tile:
      sampler = dataclasses.replace(sampler, own_width=True)
    sampler = build.on_mesh(sampler, mesh)
    shards = parallel.batch_shards(mesh)
    self.sampler, self.tokenizer, self.mesh, self.align = sampler, tokenizer, mesh, align
    self.stops = tuple(stops)
    self.rows = (row_tile or -(-batch // shards)) * shards  # of the program that is compiled
    self.batch = -(-batch // self.rows) * self.rows

    self._run = _program(sampler, mesh, driver)
    self._warm: set[tuple[int, ...]] = set()

  def slots(self, request: Request) -> int:
    """Of its canvas."""
    return sizes.canvas(len(request.tokens) + self.sampler.policy.spare, self.sampler.block)

  def batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
    """What is done together: the first request that is left, and the next of its canvas size."""
    left: dict[int, collections.deque[int]] = {}
    for i, request in enumerate(requests):
      left.setdefault(self.slots(request), collections.deque()).append(i)
    while left:
      slots = min(left, key=lambda size: left[size][0])
      queue = left[slots]
      yield [queue.popleft() for _ in range(min(self.batch, len(queue)))]
      if not queue:
        del left[slots]

  def canvas(self, requests: Sequence[Request], seed: int) -> Canvas:
    """The requests as rows of one canvas, filled up to whole tiles with rows that are done."""
    rows = [*requests, *[requests[-1]] * (-len(requests) % self.rows)]
    canvas = make_canvas(
      [r.tokens for r in rows],
      [r.open for r in rows],
      [r.id for r in rows],
      samples=[r.sample for r in rows],
      slots=max(map(self.slots, requests)),
      block=self.sampler.block,
      align=self.align,
      mask_id=self.sampler.mask_id,
      seed=seed,
    )
    return canvas.replace(done_B=np.arange(len(rows)) >= len(requests))

  def __call__(
    self,
    params: Params,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    on_batch: Callable[[list[Completion]], None] | None = None,
  ) -> list[Completion]:
    """Completions in the order of the requests.

    After each batch `on_batch` sees the next ones of that order, as far as all before them are
    there too: what it has not seen by then is less than a batch for each canvas size.
    """
    done: list[Completion | None] = [None] * len(requests)
    told, params = 0, apart(params)
    for batch in self.batches(requests):
      for first in range(0, len(batch), self.rows):
        tile = batch[first : first + self.rows]
        completed = self._complete(params, [requests[i] for i in tile], seed)
        for i, completion in zip(tile, completed, strict=True):
          done[i] = completion
      ready = list(itertools.takewhile(lambda each: each is not None, done[told:]))
      told += len(ready)
      if on_batch:
        on_batch(ready)
    return done

  def _complete(self, params: Params, requests: list[Request], seed: int) -> list[Completion]:
    """One run of the program, over `rows` requests of one canvas size or fewer."""
    canvas = parallel.put(self.canvas(requests, seed), parallel.batch_sharding(self.mesh))
    self._warm_up(params, canvas)
    began = time.perf_counter()
    canvas = jax.block_until_ready(self._run(params, canvas))
    seconds = time.perf_counter() - began
    host = parallel.to_host(canvas.replace(key_B=None))
    own = {"sampler": self.sampler, "tokenizer": self.tokenizer, "stops": self.stops}
    return [read(host, row, each, seconds=seconds, **own) for row, each in enumerate(requests)]

  def _warm_up(self, params: Params, canvas: Canvas) -> None:
    """Compiles for a canvas of this size: compilation is not sampling time."""
    if canvas.tokens_BxL.shape not in self._warm:
      idle = canvas.replace(done_B=jax.numpy.ones_like(canvas.done_B))
      jax.block_until_ready(self._run(params, idle))
      self._warm.add(canvas.tokens_BxL.shape)

  def traced(self, params: Params, request: Request) -> jax.stages.Traced:
    """The program for canvases of the request's size, of shapes of parameters; it does not run."""
    split = parallel.batch_sharding(self.mesh)
    canvas = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), self.canvas([request], 0)
    )
    return self._run.trace(params, canvas)

  def compile(self, params: Params, requests: Sequence[Request]) -> None:
    """Compiles all that these requests need, so that what follows is sampling alone."""
    params = apart(params)
    for request in {self.slots(each): each for each in requests}.values():
      canvas = parallel.put(self.canvas([request], 0), parallel.batch_sharding(self.mesh))
      self._warm_up(params, canvas)

  def stream(
    self, params: Params, requests: Sequence[Request], *, seed: int = 0
  ) -> Iterator[Canvas]:
    """The canvas before the first forward and after each one: the same step, driven by the host.

    All requests stand on one canvas, so this is another program, equal to `__call__` but for
    rounding.
    """
    canvas = parallel.put(self.canvas(requests, seed), parallel.batch_sharding(self.mesh))
    (start, step), params = _programs_of_a_step(self.sampler, self.mesh), apart(params)
    state = start(canvas)
    yield state.canvas
    while not bool(state.canvas.done_B.all()):
      state = step(params, state)
      yield state.canvas


def wasted(queries: float, computed: float) -> str:
  """For the screen: how much was computed that no row needed."""
  share = 100 * (1 - queries / computed)
  return f"{share:.1f} % of the query positions computed were padding or rows that had ended"


@functools.lru_cache(maxsize=16)
def _program(
  sampler: Sampler, mesh: jax.sharding.Mesh, driver: str
) -> Callable[[Params, Canvas], Canvas]:
  """The loop over the rows of a canvas: generators that agree in these compile it once."""

  def shard(params: Params, canvas: Canvas) -> Canvas:
    return loop.run(sampler, params, canvas)

  run = parallel.over_batch(shard, mesh, batched_in=(False, True), batched_out=True, driver=driver)
  mapped = driver == "pmap" and mesh.shape["data"] > 1  # over one shard `run` is `shard` itself
  return run if mapped else jax.jit(run)


@functools.lru_cache(maxsize=16)
def _programs_of_a_step(
  sampler: Sampler, mesh: jax.sharding.Mesh
) -> tuple[Callable[[Canvas], LoopState], Callable[[Params, LoopState], LoopState]]:
  """The loop's start and a step of it, over the rows of a canvas."""
  whole = jax.P()

  def split(state: LoopState) -> LoopState:
    return jax.tree.map(parallel.batch_spec, axes_of(state))

  def start(canvas: Canvas) -> LoopState:
    fn = functools.partial(loop.start, sampler)
    specs = parallel.batch_spec(), split(jax.eval_shape(fn, canvas))
    return parallel.over_shards(fn, mesh, (specs[0],), specs[1])(canvas)

  def step(params: Params, state: LoopState) -> LoopState:
    fn, specs = functools.partial(loop.step, sampler), split(state)
    return parallel.over_shards(fn, mesh, (whole, specs), specs)(params, state)

  return jax.jit(start), jax.jit(step)


def generator(
  config: SamplingConfig | Mapping[str, Any],
  trained: Pretrained | Training,
  *,
  drafter: Pretrained | None = None,
  mesh: jax.sharding.Mesh | None = None,
  stops: Sequence[str] = (),
) -> tuple[Generator, SamplingConfig]:
  """What samples a checkpoint, or a run that trains; and the config with nothing left open.

  Args:
    mesh: None: the config's, over the devices of this process.
    stops: see `Generator`.
  """
  drafts = None if drafter is None else (drafter.model, drafter.facts)
  sampler, own = build.sampling(config, trained.model, trained.facts, drafts)
  mesh = own.mesh.make(jax.local_devices()) if mesh is None else mesh
  made = Generator(
    sampler,
    trained.tokenizer,
    mesh,
    align=own.align,
    batch=own.batch,
    row_tile=own.row_tile,
    stops=stops,
    driver=own.parallel,
  )
  return made, own


def shared_out(
  generator: Generator, params: Params, requests: Sequence[Request], *, seed: int
) -> list[Completion]:
  """What a generator makes of requests: each process completes its share on its own devices.

  All processes get all completions, in the order of the requests.
  """
  done = generator(params, [*parallel.share(requests)], seed=seed)
  if jax.process_count() == 1:
    return done
  return [Completion(**x) for x in parallel.joined([dataclasses.asdict(x) for x in done])]


def samples(training: Training) -> Callable[[Params, int], list[str]] | None:
  """What writes the texts that a training config asks for along the way, if it asks for any."""
  sample = training.run.sample
  if not sample.every:
    return None
  config = dataclasses.replace(SamplingConfig.read(sample.config), batch=len(sample.prompts))
  write, own = generator(config, training, mesh=training.mesh)
  requests = [
    Request.from_text(i, text, training.tokenizer, **own.room, bos=own.bos)
    for i, text in enumerate(sample.prompts)
  ]
  return lambda params, step: [c.text for c in write(params, requests, seed=step)]


def read(
  canvas: Canvas,
  row: int,
  request: Request,
  *,
  sampler: Sampler,
  tokenizer: Tokenizer,
  stops: Sequence[str],
  seconds: float,
) -> Completion:
  """One row of a finished canvas (host arrays) as text. `stops`, `seconds`: see `Generator`."""
  n = int(canvas.length_B[row])  # a policy that inserts and deletes may have changed it
  ids, when, logp, free = (
    x[row, :n] for x in (canvas.tokens_BxL, canvas.when_BxL, canvas.logp_BxL, canvas.open_BxL)
  )
  written = np.flatnonzero(free & (when >= 0) & (ids != sampler.mask_id))
  end, reason = _end(ids, written, free, sampler)
  written = written[written < end]
  text = tokenizer.decode(ids[written] if request.continues else ids)
  if at := [text.find(stop) for stop in stops if request.continues and stop in text]:
    text = text[: min(at)]
    # Tokens that lie before the stop string; it may begin within the next one.
    kept = bisect.bisect_right(
      range(len(written)), len(text), key=lambda k: len(tokenizer.decode(ids[written[: k + 1]]))
    )
    end = int(written[kept])
    written, reason = written[:kept], "stop_string"
  if (free & (ids == sampler.mask_id))[:end].any():
    reason = "max_forwards"
  forwards = dict(zip(FORWARD_KINDS, map(int, canvas.forwards_Bx3[row]), strict=True))
  if sampler.drafter is not None:
    forwards["draft"] = int(canvas.drafts_B[row])
  return Completion(
    id=request.id,
    sample=request.sample,
    prompt=request.prompt,
    text=text,
    spans=[tokenizer.decode(ids[a:b]) for a, b in spans(request.open, free)],
    tokens=ids[written].tolist(),
    logprobs=[each if math.isfinite(each) else None for each in logp[written].tolist()],
    when=when.tolist(),
    row=ids.tolist(),
    forwards=forwards,
    queries=int(canvas.queries_B[row]),
    computed=float(canvas.computed_B[row]),
    remasked=int(canvas.remasked_B[row]),
    tpf=len(written) / max(sum(forwards.values()), 1),
    reason=reason,
    seconds=seconds,
  )


def spans(asked: np.ndarray, free: np.ndarray) -> list[tuple[int, int]]:
  """Where each open span that was asked for has come to lie: between the same given tokens."""
  starts = np.flatnonzero(np.diff(asked.astype(np.int8), prepend=0) > 0)
  given = np.flatnonzero(~free)
  edges = [-1, *given.tolist(), len(free)]
  return [(edges[k] + 1, edges[k + 1]) for k in (~asked).cumsum()[starts]]


def _end(
  ids: np.ndarray, written: np.ndarray, free: np.ndarray, sampler: Sampler
) -> tuple[int, str]:
  """Where a text ends, and why: before its first stop id, or tokens that vary too little."""
  stops = written[np.isin(ids[written], sampler.eos_ids)]
  end, reason = (int(stops[0]), "stop_id") if len(stops) else (len(ids), "length")
  if not sampler.least_entropy:
    return end, reason
  masked = np.flatnonzero(free & (ids == sampler.mask_id))
  whole = ids[: min([end, *masked[:1]])]
  lost = variety.lost_from(whole, sampler.block, int(np.argmax(free)), sampler.least_entropy)
  return (end, reason) if lost is None else (lost, "least_entropy")
