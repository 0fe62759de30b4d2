"""A file of prompts over the engine: a row that ends makes room at once for the next prompt."""

from collections.abc import Callable, Sequence

from dlm import parallel
from dlm.generate import Completion, Generator, Request
from dlm.sampling.caching import ExactBlock
from dlm.serving.asks import Ask
from dlm.serving.engine import Engine, Serving
from dlm.serving.scheduler import Limits
from dlm.types import Params

TURNS = 16  # nobody waits for tokens, but rows that ended do


class Offline:
  """Does what its generator does when it is called, by an engine with the generator's settings.

  A row has the canvas, the tile, the settings and the forwards that it has in a batch, so its
  tokens are the same: to the bit with a `row_tile`. A stop string saves the forwards behind it.
  With a cache that fills prompts in parts (`fill` of cache "block") prompts that begin alike share
  those.

  What the engine refuses the generator does itself, in its batches, and a line says why.
  """

  def __init__(self, generator: Generator):
    self.generator = generator

  def __call__(
    self,
    params: Params,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    on_batch: Callable[[list[Completion]], None] | None = None,
  ) -> list[Completion]:
    """See `Generator.__call__`."""
    make, done = self.generator, []
    if not requests:
      return make(params, requests, seed=seed, on_batch=on_batch)
    try:
      served = self.engine(params, requests)
    except ValueError as refused:
      print(f"in batches, as the engine refuses: {refused}", flush=True)
      return make(params, requests, seed=seed, on_batch=on_batch)
    told = 0
    for end in served.ends(self.asks(requests, seed)):
      request = requests[len(done)]
      if isinstance(end, str):
        print(f"prompt {request.id} alone, as the engine says {end}", flush=True)
        (end,) = make(params, [request], seed=seed)
      done.append(end)
      if on_batch and (len(done) - told >= make.batch or len(done) == len(requests)):
        on_batch(done[told:])
        told = len(done)
    return done

  def asks(self, requests: Sequence[Request], seed: int) -> list[Ask]:
    """The requests, as its engine takes them."""
    stops = self.generator.stops
    return [
      Ask(each, seed=seed, stops=stops if each.continues else (), offline=True, streams=False)
      for each in requests
    ]

  def engine(self, params: Params, requests: Sequence[Request]) -> Engine:
    """Compiled for these; ValueError where they cannot be served."""
    make = self.generator
    own = {"align": make.align, "mesh": make.mesh}
    return Engine(make.sampler, make.tokenizer, params, self._settings(requests), **own)

  def _settings(self, requests: Sequence[Request]) -> Serving:
    make, plan = self.generator, self.generator.sampler.plan
    sizes = tuple(sorted({make.slots(each) for each in requests}))
    fill = plan.fill if type(plan) is ExactBlock else 0
    paged = 0 < fill < min(sizes)
    return Serving(
      sizes=sizes,
      rows=make.batch,
      row_tile=make.rows // parallel.batch_shards(make.mesh),
      turns=TURNS,
      own_settings=False,
      fill=fill,
      prefixes=make.batch * max(sizes) // fill if paged else 0,
      limits=Limits(waiting_slots=max(Limits().waiting_slots, max(sizes))),
    )
