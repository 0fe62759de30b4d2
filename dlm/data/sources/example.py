"""What a source yields, and how documents fall into splits."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from dlm.data.stateless import hash_text

SPLITS = ("train", "test")
TEST_PERCENT = 10


@dataclasses.dataclass(frozen=True)
class Example:
  """One document. Plain text has an empty prompt; `meta` is what a grader needs to know."""

  prompt: str
  completion: str
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
  name: str
  generated: bool  # items are made on demand and nothing is stored: too many to tokenise ahead

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Documents:
  """A source that is held in memory."""

  name: str
  examples: tuple[Example, ...]
  generated = False

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> Example:
    return self.examples[index]


def check_split(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"unknown {split=}; known: {', '.join(SPLITS)}")


def split_of(key: str) -> str:
  """The split that owns everything named `key`, for ever and in every process.

  Whole documents are held out, never pieces of them: of a piece the model has seen the rest.
  """
  return "test" if hash_text(key) % 100 < TEST_PERCENT else "train"
