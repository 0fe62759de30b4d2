"""What a server counts, in the format of Prometheus."""

from collections.abc import Sequence
from functools import partial

from dlm.data.install import require
from dlm.serving.asks import Event
from dlm.serving.engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
  """Of one server; `text` is what /metrics answers.

  Attributes:
    replies: by HTTP status.
    first: seconds from a request's arrival to its first final token.
    whole: seconds from its arrival to its end.
  """

  def __init__(self, engine: Engine):
    library = require("prometheus_client", "serve")
    self._library, self._registry = library, library.CollectorRegistry()
    count = partial(library.Counter, registry=self._registry)
    times = partial(library.Histogram, registry=self._registry, buckets=SECONDS)
    self.replies = count("dlm_replies", "Replies by HTTP status.", ["status"])
    self.first = times("dlm_first_token_seconds", "From arrival to the first final token.")
    self.whole = times("dlm_request_seconds", "From arrival to the end.")
    self._tick = times("dlm_tick_seconds", "One tick of the engine.")
    self._tokens = count("dlm_tokens", "Tokens written.")
    self._forwards = count("dlm_forwards", "Forwards of rows.", ["kind"])
    self._ends = count("dlm_ends", "Rows that ended, and why.", ["reason"])
    for name, said, value in (
      ("dlm_waiting", "Rows that wait.", lambda: sum(1 for _ in engine.scheduler.queued())),
      ("dlm_running", "Rows that run.", lambda: len(engine.scheduler.running)),
      ("dlm_device_seconds", "Of ticks, spent waiting for the device.", lambda: engine.waited),
      ("dlm_compiles_while_serving", "Each is a bug.", lambda: engine.compiles),
      ("dlm_prefix_hits", "Pages found in the prefix cache.", lambda: engine.prefixes.hits),
      ("dlm_prefix_misses", "Pages not found there.", lambda: engine.prefixes.misses),
    ):
      library.Gauge(name, said, registry=self._registry).set_function(value)

  def tick(self, seconds: float, events: Sequence[Event]) -> None:
    """What a tick took, and what came of it."""
    self._tick.observe(seconds)
    for event in events:
      if done := event.completion:
        self._tokens.inc(len(done.tokens))
        for kind, n in done.forwards.items():
          self._forwards.labels(kind).inc(n)
      if reason := event.fault or (event.completion and event.completion.reason):
        self._ends.labels(reason).inc()

  def text(self) -> bytes:
    return self._library.generate_latest(self._registry)
