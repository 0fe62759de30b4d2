"""What to ask a model: prompts that need no download, and those of files.

  everyday               questions of daily life, drawn from templates and word lists
  stdlib                 about functions, docstrings and manuals of Python's standard library
  reasoning_gym:A,B      questions of these tasks of the package reasoning-gym
  jsonl:PATH             lines with {"prompt": ...} or {"messages": [...]}, see `dlm.data.chat`

Each prompt belongs to one split for ever, whatever the seed: what is asked of the split "test" is
never asked in "train". Everyday questions and those of files are split by a hash of their text,
those on the standard library by that of the module they are about.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dlm.data import chat
from dlm.data.chat import Conversation
from dlm.data.prompts import everyday, library
from dlm.data.sources.example import SPLITS, split_of
from dlm.seeds import check_seed

ALL = "all"
PATIENCE = 20_000  # prompts in a row that are of the other split, or known already

__all__ = ["ALL", "NAMES", "Prompt", "collect"]

NAMES = ("everyday", "stdlib", "jsonl:PATH")


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What is asked, and which source it is of."""

  talk: Conversation
  source: str

  def record(self) -> dict[str, Any]:
    """A line that the source jsonl reads."""
    return self.talk.record() | {"prompt_source": self.source}


def collect(
  specs: Iterable[str], split: str = "train", *, size: int = 1000, seed: int = 0
) -> list[Prompt]:
  """`size` prompts of every source, and of a file all; none is there twice.

  Args:
    specs: names of sources, see above.
    split: train, test or all.

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
    fresh = _fresh(_candidates(spec, seed), split, seen)
    chosen = list(fresh if _is_file(spec) else itertools.islice(fresh, size))
    if not chosen or (len(chosen) < size and not _is_file(spec)):
      raise ValueError(f"{spec} has {len(chosen)} prompts of {split=}, fewer than {size}")
    found += [Prompt(talk, spec) for talk in chosen]
  if not found:
    raise ValueError(f"no source of prompts is named; known: {', '.join(NAMES)}")
  return found


def _is_file(spec: str) -> bool:
  return spec.startswith("jsonl:")


def _candidates(spec: str, seed: int) -> Iterator[tuple[Conversation, str]]:
  """Conversations that a user's turn ends, and the key that decides the split of each."""
  name, _, argument = spec.partition(":")
  if spec == "everyday":
    for index in itertools.count():
      text = everyday.question(seed, index)
      yield Conversation(chat.from_user(text)), text
  elif spec == "stdlib":
    for text, group in library.questions(seed):
      yield Conversation(chat.from_user(text)), group
  elif name == "jsonl" and argument:
    for talk in chat.read_conversations(argument):
      if talk.messages[-1]["role"] == "assistant":
        raise ValueError(f"{talk.where}: the last message is the assistant's, and nothing is asked")
      yield talk, _text(talk)
  else:
    raise ValueError(f"unknown source of prompts {spec!r}; known: {', '.join(NAMES)}")


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
