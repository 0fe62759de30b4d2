"""OpenAI's replies: what the bodies say, whole and in parts."""

import dataclasses
import itertools
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dlm.data import Tokenizer
from dlm.generate import Completion
from dlm.serving.asks import Event
from dlm.serving.protocol import Call, Refused

FINISH = {"stop_id": "stop", "stop_string": "stop", "least_entropy": "stop"}  # else "length"
DONE = b"data: [DONE]\n\n"

# HTTP status of what ended a request without an answer, and seconds after which to ask again.
FAULTS: Mapping[str, tuple[int, int]] = {
  "queue_timeout": (503, 5),
  "request_timeout": (504, 0),
  "nonfinite_logits": (500, 0),
  "engine_restarted": (503, 5),
  "engine_died": (503, 5),
  "shutting_down": (503, 5),
}
KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def fault(name: str) -> Refused:
  status, after = FAULTS[name]
  return Refused(status, f"the request ended by {name}", code=name, retry_after=after)


def error(refused: Refused) -> dict[str, Any]:
  kind = "invalid_request_error" if refused.status < 500 else "server_error"
  return {
    "error": {
      "message": refused.message,
      "type": KINDS.get(refused.status, kind),
      "param": refused.param,
      "code": refused.code,
    }
  }


def data(value: Any) -> bytes:
  """A server-sent event."""
  return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class Replies:
  """The replies to one call: a completion's, or with `chat` a conversation's."""

  def __init__(self, call: Call, model: str, tokenizer: Tokenizer, *, chat: bool):
    self.call, self.chat, self._tokenizer = call, chat, tokenizer
    name = "chatcmpl" if chat else "cmpl"
    self._head = {
      "id": f"{name}-{secrets.token_hex(12)}",
      "object": "chat.completion" if chat else "text_completion",
      "created": int(time.time()),
      "model": model,
    }
    self._told: set[int] = set()  # choices of which something was told
    self._offset = [0] * len(call.asks)  # characters of the tokens of each choice that were told

  def whole(self, ends: Sequence[Event]) -> dict[str, Any]:
    """Of the last event of each choice."""
    choices = []
    for i, end in enumerate(ends):
      done, text = end.completion, self._text(end.completion)
      said = {"message": {"role": "assistant", "content": text}}
      choices.append(
        {
          "index": i,
          **(said if self.chat else {"text": text}),
          "logprobs": self._logprobs(i, done.tokens, done.logprobs),
          **self._end(end),
        }
      )
    return {**self._head, "choices": choices, "usage": self.usage(ends)}

  def _text(self, done: Completion) -> str:
    """Of a chat's answer that was filled in: the message, without what the template wrote."""
    if self.call.message is None:
      return done.text
    filled = iter(done.spans)
    parts = (next(filled) if isinstance(part, int) else part for part in self.call.message)
    return "".join(parts)

  def part(self, i: int, event: Event) -> dict[str, Any] | None:
    """What an event adds to choice i; None: nothing. A fault is told by `error`."""
    done = event.completion
    text = event.text
    if done is not None and not self.call.asks[i].request.continues:
      text = self._text(done)
    if not (text or event.tokens or done or event.draft):
      return None
    first = i not in self._told
    self._told.add(i)
    delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text else {})}
    end = {"finish_reason": None} if done is None else self._end(event)
    choice = {
      "index": i,
      **({"delta": delta} if self.chat else {"text": text}),
      "logprobs": self._logprobs(i, event.tokens, event.logprobs),
      **end,
    }
    if event.draft is not None:
      choice["draft"] = self._draft(event)
    return self._chunk([choice])

  def usage(self, ends: Sequence[Event]) -> dict[str, Any]:
    asks = {ask.request.id: ask for ask in self.call.asks}  # a prompt counts once, whatever n is
    prompt = sum(int((~ask.request.open).sum()) for ask in asks.values())
    written = sum(len(end.completion.tokens) for end in ends)
    return {
      "prompt_tokens": prompt,
      "completion_tokens": written,
      "total_tokens": prompt + written,
    }

  def last(self, ends: Sequence[Event]) -> dict[str, Any]:
    """The part that tells the usage, behind all others."""
    return {**self._chunk([]), "usage": self.usage(ends)}

  def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
    head = {**self._head, "object": "chat.completion.chunk"} if self.chat else self._head
    told = {"usage": None} if self.call.include_usage else {}
    return {**head, "choices": choices, **told}

  def _draft(self, event: Event) -> list[dict[str, Any]]:
    """Slots that may still change, by their place in the row; a mask has no text."""
    mask_id = self._tokenizer.mask_id
    return [
      {"slot": slot, "text": None if token == mask_id else self._tokenizer.decode([token])}
      for slot, token in event.draft
    ]

  def _logprobs(
    self, i: int, tokens: Sequence[int], logprobs: Sequence[float | None]
  ) -> dict[str, Any] | None:
    """Of each token, at the forward that wrote it; null where that forward gave none."""
    if not self.call.logprobs:
      return None
    texts = [self._tokenizer.decode([token]) for token in tokens]
    if self.chat:
      pairs = zip(texts, logprobs, strict=True)
      return {
        "content": [
          {"token": text, "logprob": logp, "bytes": list(text.encode()), "top_logprobs": []}
          for text, logp in pairs
        ]
      }
    *starts, self._offset[i] = itertools.accumulate(map(len, texts), initial=self._offset[i])
    return {
      "tokens": texts,
      "token_logprobs": list(logprobs),
      "top_logprobs": None,
      "text_offset": starts,
    }

  def _end(self, event: Event) -> dict[str, Any]:
    """Why it ended, and what it cost in forwards; of a text with holes also what is in each."""
    done = event.completion
    told = {
      "reason": done.reason,
      "forwards": done.forwards,
      "tokens_per_forward": round(done.tpf, 4),
      "query_positions": done.queries,
    }
    if event.holes is not None:
      told["holes"] = [dataclasses.asdict(hole) for hole in event.holes]
    return {"finish_reason": FINISH.get(done.reason, "length"), "dlm": told}
