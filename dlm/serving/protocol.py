"""OpenAI's request bodies: read, checked field by field, and turned into what an engine is asked.

A field that would change the result and cannot be honoured is refused by name, never ignored. Text
is text: a prompt that spells the mask or the end token asks for nothing, and positions are open
only where a field of the body says so.
"""

import dataclasses
import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlm.data import Tokenizer
from dlm.data.chat import ChatTemplate, Conversation
from dlm.data.infill import parse_infill
from dlm.generate import Request, encoded, spans
from dlm.seeds import SEEDS
from dlm.serving.asks import Ask
from dlm.serving.grammars import Automaton, Words

MOST_CHOICES = 128  # of one body: its prompts times n
MOST_WORDS = 4096  # that a hole chooses among

# They change no token: whoever sends them, for whatever purpose, gets the same text.
IGNORED = frozenset(
  ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
)
# Refused unless they say what happens anyway.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  "best_of": (1,),
  "echo": (False,),
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "logit_bias": ({},),
  "top_logprobs": (0,),
  "tool_choice": ("auto", "none"),
  "parallel_tool_calls": (True,),
}


def _all(kinds: type | tuple[type, ...]) -> Callable[[Any], bool]:
  return lambda said: (
    isinstance(said, list)
    and 0 < len(said) <= MOST_WORDS
    and all(isinstance(x, kinds) and x != "" and not isinstance(x, bool) for x in said)
  )


# What a hole may be held to, and whether that is described as it should be.
GRAMMARS: Mapping[str, Callable[[Any], bool]] = {
  "choice": _all(str),
  "tokens": _all((str, int)),
  "regex": lambda said: isinstance(said, str) and bool(said),
  "schema": lambda said: isinstance(said, dict),
}


class Refused(Exception):
  """A request that is answered with an error: its HTTP status, and the body's fields."""

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after: int = 0,
  ):
    super().__init__(message)
    self.status, self.message, self.param, self.code = status, message, param, code
    self.retry_after = retry_after


def invalid(param: str, value: Any, rule: str) -> Refused:
  return Refused(400, f"{param}={value!r:.80} {rule}", param=param, code="invalid_value")


@dataclasses.dataclass(frozen=True)
class Call:
  """A body that was understood.

  Args:
    asks: choice i is row i.
    logprobs: each token's log-probability, at the forward that wrote it, is told.
    message: of a chat whose answer is filled in: its texts, and numbers where it was open.
  """

  asks: list[Ask]
  stream: bool
  include_usage: bool
  logprobs: bool
  message: tuple[str | int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads the bodies that one model can be sent.

  Args:
    model: its name.
    slots: of the largest canvas.
    new: tokens of an answer where the body does not say; 0: as many as fit.
    words: what holes may be held to is made of them; None: they may not.
  """

  model: str
  tokenizer: Tokenizer
  template: Callable[[], ChatTemplate]
  slots: int
  new: int
  bos: bool
  words: Words | None
  start_within: float
  end_within: float

  def completion(self, body: Mapping[str, Any], tenant: str) -> Call:
    """Of /v1/completions; with `infill`, `[[8]]` in a prompt stands for eight open positions.

    `holes` says what each may say, in their order; without `infill` the answer is the one hole.
    """
    fields = _Fields(body)
    prompts = _prompts(fields)
    infill = fields.flag("infill")
    suffix = fields.take("suffix", str)
    new = fields.whole("max_tokens", least=1)
    logprobs = fields.whole("logprobs", least=0)
    if logprobs:
      raise invalid("logprobs", logprobs, "must be 0: the written token's alone is known")
    if suffix is not None and (infill or new is None):
      raise invalid("suffix", suffix, "needs max_tokens, and goes without infill")
    rows = [self._row(i, text, infill, suffix, new) for i, text in enumerate(prompts)]
    plain = not infill and suffix is None
    grammars = self._grammars(fields, rows, answer=plain)
    return self._call(fields, rows, grammars, tenant, logprobs is not None)

  def chat(self, body: Mapping[str, Any], tenant: str) -> Call:
    """Of /v1/chat/completions; tools and chat_template_kwargs go through the chat template.

    With `infill` the last message is the assistant's, and `[[8]]` in it stands for eight open
    positions: what is answered is that message. `holes`: as in `completion`.
    """
    fields = _Fields(body)
    named = ("messages", "tools", "chat_template_kwargs")
    record = {name: fields.pop(name) for name in named}
    new = fields.whole("max_completion_tokens", least=1)
    old = fields.whole("max_tokens", least=1)
    if None not in (new, old) and new != old:
      raise invalid("max_tokens", old, f"contradicts max_completion_tokens={new}")
    infill = fields.flag("infill")
    message = None
    try:
      talk = Conversation.of(record, "messages")
      said = str(talk.messages[-1].get("content") or "")
      if infill:
        parts = parse_infill(said, self.slots)
        kinds = [type(part) for part in parts]
        # Open positions that follow open positions are one hole with them.
        message = tuple(
          x for i, x in enumerate(parts) if kinds[max(i - 1, 0) : i + 1] != [int, int]
        )
        ids, free = self.template().encode_infill(talk, self.tokenizer, self.slots)
      else:
        ids = self.template().encode([talk], self.tokenizer)[0]
    except ValueError as error:
      raise Refused(400, str(error), param="messages", code="invalid_value") from error
    if infill:
      row = self._filled(0, said, ids, free, new or old, "messages")
    else:
      row = self._continued(0, said, ids, new or old, "messages")
    grammars = self._grammars(fields, [row], answer=not infill)
    call = self._call(fields, [row], grammars, tenant, fields.flag("logprobs"))
    return dataclasses.replace(call, message=message)

  def _grammars(
    self, fields: "_Fields", rows: Sequence[Request], *, answer: bool
  ) -> tuple[Automaton | None, ...]:
    """What the open runs of each row may say; `answer`: there is one, behind the prompt."""
    holes = fields.take("holes", list)
    form = fields.take("response_format", dict)
    if form is not None and form.get("type") != "text":
      schema = form.get("json_schema")
      schema = schema.get("schema") if isinstance(schema, dict) else None
      if form.get("type") != "json_schema" or not isinstance(schema, dict):
        raise Refused(
          400, f"response_format={form!r:.80} is not supported; a json_schema with a schema is",
          param="response_format", code="unsupported_parameter",
        )  # fmt: skip
      if holes is not None or not answer:
        raise invalid(
          "response_format", form, "is of a whole answer: without holes, infill, suffix"
        )
      return (self._grammar({"schema": schema}, "response_format", rows, 0),)
    if holes is None:
      return ()
    counts = {len(spans(row.open, row.open)) for row in rows}
    if counts != {len(holes)}:
      raise invalid("holes", holes, f"must describe each of {max(counts)} holes, null: any text")
    return tuple(
      None if hole is None else self._grammar(hole, f"holes[{i}]", rows, i)
      for i, hole in enumerate(holes)
    )

  def _grammar(self, hole: Any, name: str, rows: Sequence[Request], i: int) -> Automaton:
    """What hole i of the rows may say, which has to fit it."""
    known = isinstance(hole, dict) and len(hole) == 1 and next(iter(hole)) in GRAMMARS
    if not known or not GRAMMARS[next(iter(hole))](next(iter(hole.values()))):
      raise invalid(
        name, hole, 'must be {"choice": [texts]}, {"regex": "..."} or {"tokens": [...]}'
      )
    if self.words is None:
      raise Refused(
        400, f"{name}: this server holds no text to anything; serving.constraints=True does",
        param=name, code="unsupported_parameter",
      )  # fmt: skip
    ((kind, said),) = hole.items()
    try:
      match kind:
        case "tokens":
          grammar = self.words.tokens(said)
        case "choice":
          grammar = self.words.choice(tuple(said))
        case "regex":
          grammar = self.words.regex(said)
        case _:
          grammar = self.words.regex(json.dumps(said), schema=True)
    except ValueError as error:
      raise Refused(400, f"{name}.{kind}: {error}", param=name, code="invalid_value") from error
    sizes = {}
    for row in rows:
      first, end = spans(row.open, row.open)[i]
      sizes[end - first, end == len(row.open) and bool(self.words.stops)] = None
    for text in dict.fromkeys(said) if kind == "choice" else (None,):
      part = grammar if text is None else self.words.choice_once((text,))
      for size, early in sizes:
        if not part.fits(size, early):
          most = "at most" if early else "exactly"
          what = "nothing that it allows can" if text is None else f"{text!r:.80} cannot"
          rule = f"{name}.{kind}: {what} be said in {most} {size} tokens"
          raise Refused(400, rule, param=name, code="invalid_value")
    return grammar

  def _call(
    self,
    fields: "_Fields",
    rows: Sequence[Request],
    grammars: tuple[Automaton | None, ...],
    tenant: str,
    logprobs: bool,
  ) -> Call:
    model = fields.take("model", str)
    if model not in (None, self.model):
      raise Refused(
        404, f"model={model!r} is not served; {self.model!r} is", param="model",
        code="model_not_found",
      )  # fmt: skip
    n = fields.whole("n", least=1) or 1
    if n * len(rows) > MOST_CHOICES:
      raise invalid("n", n, f"times {len(rows)} prompts must be at most {MOST_CHOICES}")
    top_p = fields.number("top_p", 0, 1)
    if top_p == 0:
      raise invalid("top_p", top_p, "must be positive; temperature=0 takes the likeliest token")
    seed = fields.whole("seed", least=0)
    if seed is not None and seed >= SEEDS:
      raise invalid("seed", seed, f"must be below {SEEDS}")
    stops = _stops(fields)
    if stops and grammars:
      raise invalid("stop", stops, "goes without holes and response_format, which say all")
    priority = fields.take("priority", str) or "online"
    if priority not in ("online", "offline"):
      raise invalid("priority", priority, "must be 'online' or 'offline'")
    stream = fields.flag("stream")
    options = fields.take("stream_options", dict) or {}
    if options and not stream:
      raise invalid("stream_options", options, "needs stream=true")
    if set(options) - {"include_usage"} or not isinstance(options.get("include_usage", True), bool):
      raise invalid("stream_options", options, 'must be {"include_usage": true} or false')
    drafts = fields.flag("draft")
    if drafts and not stream:
      raise invalid("draft", drafts, "needs stream=true")
    own = {
      "seed": secrets.randbelow(SEEDS) if seed is None else seed,
      "temperature": fields.number("temperature", 0, 2),
      "top_p": top_p,
      "threshold": fields.number("threshold", 0, 1),
    }
    fields.finish()
    asks = [
      Ask(
        row, **own, holes=grammars, stops=stops, streams=stream, drafts=drafts, tenant=tenant,
        offline=priority == "offline", start_within=self.start_within, end_within=self.end_within,
      )
      for request in rows
      for row in request.samples(n)
    ]  # fmt: skip
    return Call(asks, stream, bool(options.get("include_usage")), logprobs)

  def _row(
    self, i: int, prompt: str | list[int], infill: bool, suffix: str | None, new: int | None
  ) -> Request:
    if isinstance(prompt, list):
      if infill:
        raise invalid("infill", infill, "needs a prompt of text")
      if min(prompt) < 0 or max(prompt) >= self.tokenizer.vocab_size:
        rule = f"must hold ids from 0 to {self.tokenizer.vocab_size - 1}"
        raise invalid("prompt", prompt, rule)
      ids, shown = np.asarray(prompt, np.int32), ""
    else:
      shown = prompt
      most = self.slots if infill else None
      try:
        ids, free = encoded(prompt, self.tokenizer, bos=self.bos, infill=most)
      except ValueError as error:
        raise Refused(400, f"prompt: {error}", param="prompt", code="invalid_value") from error
      if infill:
        return self._filled(i, prompt, ids, free, new, "prompt")
    if suffix is None:
      return self._continued(i, shown, ids, new, "prompt")
    behind = self.tokenizer.encode(suffix)
    self._fits(len(ids) + len(behind), new, "prompt")  # before they are laid out
    free = np.repeat([False, True, False], [len(ids), new, len(behind)])
    masks = np.full(new, self.tokenizer.mask_id, np.int32)
    return self._filled(i, shown, np.concatenate([ids, masks, behind]), free, None, "prompt")

  def _filled(
    self, i: int, prompt: str, ids: np.ndarray, free: np.ndarray, new: int | None, param: str
  ) -> Request:
    if not free.any():
      where = "prompt" if param == "prompt" else "last message"
      raise invalid("infill", True, f"needs a {where} with holes, as [[8]]")
    if new is not None:
      raise invalid("max_tokens", new, "goes without infill: the holes say how many")
    self._fits(len(ids) - int(free.sum()), int(free.sum()), param)
    return Request(i, prompt, ids, free)

  def _continued(
    self, i: int, prompt: str, ids: np.ndarray, new: int | None, param: str
  ) -> Request:
    room = self.slots - len(ids)
    new = new or (min(self.new, room) if self.new else room)
    self._fits(len(ids), max(new, 1), param)
    return Request.from_ids(
      i, prompt, ids, self.tokenizer.mask_id, slots=self.slots, max_new_tokens=new
    )

  def _fits(self, given: int, new: int, param: str) -> None:
    if given + new > self.slots:
      raise Refused(
        400, f"{given} tokens and {new} new ones exceed the {self.slots} that a request may have",
        param=param, code="context_length_exceeded",
      )  # fmt: skip


class _Fields:
  """A body's fields, taken one by one; what is left at the end is not understood."""

  def __init__(self, body: Mapping[str, Any]):
    self._left = dict(body)

  def pop(self, name: str) -> Any:
    return self._left.pop(name, None)

  def take(self, name: str, kind: type) -> Any:
    value = self.pop(name)
    if value is not None and not isinstance(value, kind):
      raise invalid(name, value, f"must be of type {kind.__name__}")
    return value

  def flag(self, name: str) -> bool:
    return bool(self.take(name, bool))

  def whole(self, name: str, *, least: int) -> int | None:
    value = self.pop(name)
    if value is None:
      return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
      raise invalid(name, value, f"must be a whole number, at least {least}")
    return value

  def number(self, name: str, low: float, high: float) -> float | None:
    value = self.pop(name)
    if value is None:
      return None
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high:
      raise invalid(name, value, f"must be a number from {low} to {high}")
    return float(value)

  def finish(self) -> None:
    """Raises Refused where a field is left that would change the result."""
    for name, value in self._left.items():
      if name in IGNORED or value is None or value in NEUTRAL.get(name, ()):
        continue
      if name in NEUTRAL:
        raise Refused(
          400, f"{name}={value!r:.80} is not supported", param=name, code="unsupported_parameter"
        )
      raise Refused(400, f"{name} is not a field of this route", param=name, code="unknown_field")


def _prompts(fields: _Fields) -> list[str | list[int]]:
  """A text, ids, or a list of either."""
  prompt = fields.pop("prompt")
  prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
  alike = isinstance(prompts, list) and (
    all(isinstance(each, str) and each for each in prompts) or all(map(_is_ids, prompts))
  )
  if alike and prompts:
    return prompts
  raise invalid("prompt", prompt, "must be a text, token ids, or a list of either; none empty")


def _is_ids(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
  )


def _stops(fields: _Fields) -> tuple[str, ...]:
  stop = fields.pop("stop")
  stops = [stop] if isinstance(stop, str) else stop or []
  texts = isinstance(stops, list) and all(isinstance(each, str) and each for each in stops)
  if not texts or len(stops) > 16:
    raise invalid("stop", stop, "must be a text or up to 16 of them, none empty")
  return tuple(stops)
