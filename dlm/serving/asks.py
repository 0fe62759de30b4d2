"""What an engine is asked, and what it tells: the words that it and the server share."""

import dataclasses
import math

from dlm.generate import Completion, Request
from dlm.serving.grammars import Automaton


@dataclasses.dataclass(frozen=True)
class Ask:
  """A request, and what it wants of its own.

  Args:
    seed: with the request's id and sample all that its noise depends on.
    temperature, top_p, threshold: None: those of the sampling config.
    holes: of each run of open slots, what it may say; None: any text. (): nothing is held to
      anything. A row that is held decides one forward a tick.
    stops: strings that end the text where the first of them begins; the row ends there too.
    offline: it runs where nobody waits for a row.
    tenant: prompts share cached prefixes within one alone.
    streams: what is final is told before the row is done.
    drafts: what is open and not final is told too.
    start_within, end_within: seconds that it may wait, and take in all.
  """

  request: Request
  seed: int = 0
  temperature: float | None = None
  top_p: float | None = None
  threshold: float | None = None
  holes: tuple[Automaton | None, ...] = ()
  stops: tuple[str, ...] = ()
  offline: bool = False
  tenant: str = ""
  streams: bool = True
  drafts: bool = False
  start_within: float = math.inf
  end_within: float = math.inf


@dataclasses.dataclass(frozen=True)
class Hole:
  """What became of a run of open slots, summed over its tokens.

  Attributes:
    logprob: at the forwards that wrote them, among the tokens that were allowed; None: of some
      token it is not known.
    entropy: in nats, of what they were chosen from; None: as `logprob`, or nothing was held.
  """

  text: str
  logprob: float | None
  entropy: float | None


@dataclasses.dataclass(frozen=True)
class Event:
  """What became final of a request since its last event; the last one has `completion` or `fault`.

  `tokens` in order of position, with the log-probability each had when it was written (None: it had
  none); `text` is what they add to the text, whole characters and no beginning of a stop string.
  `draft`, if asked for: place and id of each open slot that may still change. `holes`, of a row
  that is done: its runs of open slots, if it has other text behind one or is held. `fault`:

    cancelled
    queue_timeout     it waited longer than `start_within`
    request_timeout   it took longer than `end_within`
    nonfinite_logits  the model said NaN
    engine_restarted  a program failed, and with it all that was on the device
  """

  key: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[float | None] = dataclasses.field(default_factory=list)
  text: str = ""
  draft: list[tuple[int, int]] | None = None
  completion: Completion | None = None
  holes: list[Hole] | None = None
  fault: str | None = None
