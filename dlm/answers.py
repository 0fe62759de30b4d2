"""Self-distillation: a checkpoint's own answers to prompts, as conversations to train on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from dlm.data.chat import ChatTemplate, Conversation
from dlm.data.prompts import Prompt
from dlm.data.tokenizers import Tokenizer
from dlm.generate import Completion, Request


@dataclasses.dataclass(frozen=True)
class Answers:
  """Completions as lines of training data; a completion's `id` is the number of its prompt."""

  prompts: Sequence[Prompt]
  given: Mapping[int, np.ndarray]  # by id: the ids that the answer was asked with
  template: ChatTemplate
  tokenizer: Tokenizer

  @classmethod
  def to(
    cls,
    requests: Sequence[Request],
    prompts: Sequence[Prompt],
    template: ChatTemplate,
    tokenizer: Tokenizer,
  ) -> Self:
    given = {request.id: request.tokens[~request.open] for request in requests}
    return cls(prompts, given, template, tokenizer)

  def lines(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:
    """{"messages": [..., the answer], "prompt_source": ..., "reads_back": ..., ...} of each.

    "reads_back": training on the line reads the very ids that were sampled.
    """
    talks = [self._talk(each) for each in completions]
    rows = [np.append(self.given[each.id], each.tokens) for each in completions]
    same = self.template.reads_back(talks, rows, self.tokenizer)
    return [self._line(*each) for each in zip(talks, completions, same, strict=True)]

  def _talk(self, completion: Completion) -> Conversation:
    talk = self.prompts[completion.id].talk
    answer = {"role": "assistant", "content": completion.text}
    return dataclasses.replace(talk, messages=[*talk.messages, answer])

  def _line(self, talk: Conversation, completion: Completion, same: bool) -> dict[str, Any]:
    return dataclasses.replace(self.prompts[completion.id], talk=talk).record() | {
      "id": completion.id,
      "sample": completion.sample,
      "tokens": len(completion.tokens),
      "forwards": sum(completion.forwards.values()),
      "reason": completion.reason,
      "reads_back": same,
    }


def flaw(line: dict[str, Any]) -> str:
  """Why a line of `Answers` is not to be learned from; "" if it is whole."""
  if line["reason"] != "stop_id":
    return f"did not end by itself ({line['reason']})"
  if not line["reads_back"]:
    return "its text has other ids than those that were sampled"
  return ""
