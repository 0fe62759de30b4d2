"""THE sampling path: prompt -> Canvas -> [ plan -> denoise -> score -> decide -> commit ]* -> text.

The bracket is `dlm.sampling.loop`; this file puts requests on canvases, runs the loop over every
local device, and reads completions off the result.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from dlm import masks, parallel
from dlm.data import Tokenizer, encode_infill
from dlm.sampling import loop, variety
from dlm.sampling.canvas import make_canvas
from dlm.sampling.sampler import Sampler
from dlm.types import FORWARD_KINDS, Canvas, Params


@dataclasses.dataclass(frozen=True)
class Request:
  """Token ids of one row and where the sampler may write; `id` seeds its noise."""

  id: int
  prompt: str
  tokens: np.ndarray
  open: np.ndarray

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
    if infill:
      tokens, free = encode_infill(text, tokenizer)
    else:
      tokens = tokenizer.encode(text)
      free = np.zeros(len(tokens), bool)
    if bos:
      tokens, free = np.append(np.int32(tokenizer.bos_id), tokens), np.append(False, free)
    if not free.any():
      room = {"slots": slots, "max_new_tokens": max_new_tokens}
      return cls.from_ids(id, text, tokens, tokenizer.mask_id, **room)
    if len(tokens) > slots:
      raise ValueError(f"prompt {id}: {len(tokens)} tokens exceed the canvas of {slots} slots")
    return cls(id, text, tokens, free)

  @classmethod
  def from_ids(
    cls, id: int, prompt: str, ids: np.ndarray, mask_id: int, *, slots: int, max_new_tokens: int = 0
  ) -> "Request":
    """Ids to continue, as `from_text` continues a prompt."""
    new = max_new_tokens or slots - len(ids)
    if new < 1 or len(ids) + new > slots:
      raise ValueError(
        f"prompt {id}: {len(ids)} tokens and {max(new, 1)} new ones exceed the "
        f"canvas of {slots} slots"
      )
    tokens = np.concatenate([ids, np.full(new, mask_id, np.int32)])
    return cls(id, prompt, tokens, np.arange(len(tokens)) >= len(ids))


@dataclasses.dataclass(frozen=True)
class Completion:
  """What became of a request."""

  id: int
  prompt: str
  text: str  # what was written, up to its end; for infilling the whole text
  spans: list[str]  # each open span as text
  tokens: list[int]  # ids written, in order of position, before the text's end
  when: list[int]  # by position of the row: the forward that wrote it, -1 where given
  row: list[int]  # the row's ids as it ended
  forwards: dict[str, int]  # by kind: full, window, commit; with a drafter also draft
  queries: int  # query positions those forwards computed
  remasked: int  # tokens that were written and masked again
  tpf: float  # tokens per forward
  finished: bool  # False: max_forwards ended it with masks left before the text's end
  seconds: float  # wall time of its batch, without compilation


class Generator:
  """Runs one sampler over many requests, in batches of one shape: it compiles once a canvas size.

  Requests run with others of their own canvas size, so a request's canvas is the same whatever it
  is asked together with.

  Args:
    align: "canvas" or "prompt", see `make_canvas`.
    batch: rows a batch; rounded up to a multiple of the devices that share it.
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
    driver: str = "shard_map",
  ):
    if batch < 1:
      raise ValueError(f"Generator: batch={batch} must be at least 1")
    own = "canvas" if isinstance(sampler.sees, masks.BlockCausal) else "prompt"
    in_blocks = isinstance(sampler.sees, masks.BlockCausal | masks.PromptBlocks)
    if sampler.plan.commits and in_blocks and align != own:
      raise ValueError(
        f"a cache is exact only in blocks that are the model's own: align={align!r} cuts others; "
        f"use {own!r}, or cache 'none'"
      )
    shards = parallel.batch_shards(mesh)
    self.sampler, self.tokenizer, self.mesh, self.align = sampler, tokenizer, mesh, align
    self.batch = -(-batch // shards) * shards

    def shard(params: Params, canvas: Canvas) -> Canvas:
      return loop.run(sampler, params, canvas)

    run = parallel.over_batch(
      shard, mesh, batched_in=(False, True), batched_out=True, driver=driver
    )
    mapped = driver == "pmap" and mesh.shape["data"] > 1  # over one shard `run` is `shard` itself
    self._run = run if mapped else jax.jit(run)
    self._warm: set[tuple[int, ...]] = set()

  def slots(self, request: Request) -> int:
    """Of its canvas: a power of two times the block, so that few shapes are ever compiled."""
    slots = self.sampler.block
    while slots < len(request.tokens):
      slots *= 2
    return slots

  def batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
    """What runs together: the first request that is left, and the next ones of its canvas size."""
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
    """The requests as rows of one canvas, filled up to a whole batch with rows that are done."""
    rows = [*requests, *[requests[-1]] * (self.batch - len(requests))]
    canvas = make_canvas(
      [r.tokens for r in rows],
      [r.open for r in rows],
      [r.id for r in rows],
      slots=max(map(self.slots, requests)),
      block=self.sampler.block,
      align=self.align,
      mask_id=self.sampler.mask_id,
      seed=seed,
    )
    return canvas.replace(done_B=np.arange(self.batch) >= len(requests))

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
    told = 0
    for batch in self.batches(requests):
      chunk = [requests[i] for i in batch]
      canvas = self.canvas(chunk, seed)
      canvas = jax.device_put(canvas, parallel.batch_sharding(self.mesh))
      if canvas.tokens_BxL.shape not in self._warm:  # compilation is not sampling time
        idle = canvas.replace(done_B=jax.numpy.ones_like(canvas.done_B))
        jax.block_until_ready(self._run(params, idle))
        self._warm.add(canvas.tokens_BxL.shape)
      began = time.perf_counter()
      canvas = jax.block_until_ready(self._run(params, canvas))
      seconds = time.perf_counter() - began
      host = jax.device_get(canvas.replace(key_B=None))
      for row, (i, request) in enumerate(zip(batch, chunk, strict=True)):
        done[i] = _read(host, row, request, self.sampler, self.tokenizer, seconds)
      ready = list(itertools.takewhile(lambda each: each is not None, done[told:]))
      told += len(ready)
      if on_batch:
        on_batch(ready)
    return done

  def stream(
    self, params: Params, requests: Sequence[Request], *, seed: int = 0
  ) -> Iterator[Canvas]:
    """The canvas before the first forward and after each one: the same step, driven by the host.

    At most `batch` requests, on one canvas.
    """
    canvas = self.canvas(requests, seed)
    state = jax.jit(loop.start, static_argnums=0)(self.sampler, canvas)
    step = jax.jit(loop.step, static_argnums=0)
    yield state.canvas
    while not bool(state.canvas.done_B.all()):
      state = step(self.sampler, params, state)
      yield state.canvas


def _read(
  canvas: Canvas,
  row: int,
  request: Request,
  sampler: Sampler,
  tokenizer: Tokenizer,
  seconds: float,
) -> Completion:
  """One row of a finished canvas (host arrays) as text."""
  n = len(request.tokens)
  ids, when = canvas.tokens_BxL[row, :n], canvas.when_BxL[row, :n]
  written = np.flatnonzero(request.open & (when >= 0) & (ids != sampler.mask_id))
  end = _end(ids, written, request.open, sampler)
  written = written[written < end]
  edges = np.flatnonzero(np.diff(np.concatenate([[0], request.open.astype(np.int8), [0]])))
  spans = [tokenizer.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)]
  suffix = bool(request.open[int(np.argmax(request.open)) :].all())
  forwards = dict(zip(FORWARD_KINDS, map(int, canvas.forwards_Bx3[row]), strict=True))
  if sampler.drafter is not None:
    forwards["draft"] = int(canvas.drafts_B[row])
  return Completion(
    id=request.id,
    prompt=request.prompt,
    text=tokenizer.decode(ids[written] if suffix else ids),
    spans=spans,
    tokens=ids[written].tolist(),
    when=when.tolist(),
    row=ids.tolist(),
    forwards=forwards,
    queries=int(canvas.queries_B[row]),
    remasked=int(canvas.remasked_B[row]),
    tpf=len(written) / max(sum(forwards.values()), 1),
    finished=not bool((request.open & (ids == sampler.mask_id))[:end].any()),
    seconds=seconds,
  )


def _end(ids: np.ndarray, written: np.ndarray, free: np.ndarray, sampler: Sampler) -> int:
  """Where a text ends: before its first stop id, or before tokens that vary too little."""
  stops = written[np.isin(ids[written], sampler.eos_ids)]
  end = int(stops[0]) if len(stops) else len(ids)
  if not sampler.least_entropy:
    return end
  masked = np.flatnonzero(free & (ids == sampler.mask_id))
  whole = ids[: min([end, *masked[:1]])]
  lost = variety.lost_from(whole, sampler.block, int(np.argmax(free)), sampler.least_entropy)
  return end if lost is None else lost
