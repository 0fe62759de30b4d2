"""What to ask a model: prompts that need no download, and those of files.

  everyday               questions of daily life, drawn from templates and word lists
  stdlib                 about functions, docstrings and manuals of Python's standard library
  reasoning_gym:A,B      questions of these tasks of the package reasoning-gym, in turn
  jsonl:PATH             lines with {"prompt": ...} or {"messages": [...]}, see `dlm.data.chat`
  parquet:PATH           rows of the same, see `dlm.data.tables`
  dataset:DIR

Each prompt belongs to one split for ever, whatever the seed: what is asked of the split "test" is
never asked in "train". A hash of the text decides, for the standard library one of the module that
is asked about. Of a conversation that the assistant ends, its last turn is left out.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dlm.data import chat
from dlm.data.chat import Conversation
from dlm.data.lines import READERS
from dlm.data.prompts import everyday, library
from dlm.data.sources import gym
from dlm.data.sources.example import SPLITS, split_of
from dlm.seeds import check_seed

ALL = "all"
PATIENCE = 20_000  # prompts in a row that are of the other split, or known already

__all__ = ["ALL", "NAMES", "Prompt", "collect", "paths"]

NAMES = (
  "everyday", "stdlib", "reasoning_gym:TASKS", "jsonl:PATH", "parquet:PATH", "dataset:DIR",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What is asked, and which source it is of."""

  talk: Conversation
  source: str

  def record(self) -> dict[str, Any]:
    """A line that the source jsonl reads."""
    return self.talk.record() | {"prompt_source": self.source}


def collect(
  specs: Iterable[str],
  split: str = "train",
  *,
  size: int = 1000,
  seed: int = 0,
  configs: Mapping[str, Any] | None = None,
) -> list[Prompt]:
  """`size` prompts of every source, and of a file all; none is there twice.

  Args:
    specs: names of sources, see above.
    split: train, test or all.
    configs: task of reasoning_gym -> its settings.

  Raises:
    ValueError: a source is unknown, or has fewer prompts than that.
  """
  check_seed(seed)
  if split not in (*SPLITS, ALL):
    raise ValueError(f"unknown {split=}; known: {', '.join((*SPLITS, ALL))}")
  if size < 1:
    raise ValueError(f"{size=} must be at least 1")
  seen: set[str] = set()
  found = []
  for spec in specs:
    kind = spec.partition(":")[0]
    most = None if kind in READERS else size
    candidates = _candidates(spec, seed, size, configs or {})
    talks = list(itertools.islice(_fresh(candidates, split, seen), most))
    if len(talks) < (most or 1):
      raise ValueError(f"{spec} has {len(talks)} prompts of {split=}, fewer than {most or 1}")
    found += [Prompt(talk, spec) for talk in talks]
  if not found:
    raise ValueError(f"no source of prompts is named; known: {', '.join(NAMES)}")
  return found


def paths(spec: str) -> str | None:
  """Of a source that is files: their path or pattern."""
  kind, _, argument = spec.partition(":")
  return argument if kind in READERS and argument else None


def _candidates(
  spec: str, seed: int, size: int, configs: Mapping[str, Any]
) -> Iterator[tuple[Conversation, str]]:
  """Conversations that ask for an answer, and the key that decides the split of each."""
  kind, _, argument = spec.partition(":")
  if bool(argument) != (kind in READERS or kind == "reasoning_gym"):
    kind = ""
  match kind:
    case "everyday":
      for index in itertools.count():
        text = everyday.question(seed, index)
        yield Conversation(chat.from_user(text)), text
    case "stdlib":
      for text, group in library.questions(seed):
        yield Conversation(chat.from_user(text)), group
    case "reasoning_gym":
      tasks = gym.items(argument, seed, size, configs).values()
      for item in itertools.chain.from_iterable(zip(*tasks, strict=True)):
        yield Conversation(chat.from_user(item.entry["question"])), gym.key(item)
    case "jsonl" | "parquet" | "dataset":
      for talk in chat.read_conversations(argument, kind):
        asked = _asked(talk)
        yield asked, _text(asked)
    case _:
      raise ValueError(f"unknown source of prompts {spec!r}; known: {', '.join(NAMES)}")


def _asked(talk: Conversation) -> Conversation:
  """What stands before the assistant's last turn, if that ends the conversation."""
  said = talk.messages
  if said[-1]["role"] != "assistant":
    return talk
  if len(said) == 1:
    raise ValueError(f"{talk.where}: nothing is asked before the assistant's message")
  return dataclasses.replace(talk, messages=said[:-1])


def _text(talk: Conversation) -> str:
  """What is said; of a single question the question itself."""
  said = [message["content"] for message in talk.messages]
  if len(said) == 1 and talk.tools is None and isinstance(said[0], str):
    return said[0]
  return json.dumps(talk.record(), sort_keys=True)


def _fresh(
  candidates: Iterable[tuple[Conversation, str]], split: str, seen: set[str]
) -> Iterator[Conversation]:
  """Those of the split that were not seen before; ends where they are hardly found any more."""
  missed = 0
  for talk, key in candidates:
    text = _text(talk)
    if text in seen or split not in (split_of(key), ALL):
      missed += 1
      if missed == PATIENCE:
        return
      continue
    missed = 0
    seen.add(text)
    yield talk
