"""What a source yields, and how documents fall into splits."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

from dlm import files
from dlm.data.chat import Conversation
from dlm.data.stateless import hash_text

SPLITS = ("train", "test")
TEST_PERCENT = 10


@dataclasses.dataclass(frozen=True)
class Example:
  """One document. Plain text has an empty prompt; `meta` is what a grader needs to know.

  A conversation is `talk`, to be written by a chat template; its completion is what is said in it.
  """

  prompt: str
  completion: str
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  talk: Conversation | None = None


class Source(Protocol):
  name: str
  generated: bool  # items are made on demand and nothing is stored: too many to tokenise ahead

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Example: ...
  def fingerprint(self) -> dict[str, str]:
    """What it is made of -> a word that changes when that does."""
    ...


@dataclasses.dataclass(frozen=True)
class Documents:
  """A source that is held in memory; `paths` are the files that it was read from."""

  name: str
  examples: tuple[Example, ...]
  paths: tuple[str, ...] = ()
  generated = False

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> Example:
    return self.examples[index]

  def fingerprint(self) -> dict[str, str]:
    if self.paths:
      return {path: files.fingerprint(path) for path in self.paths}
    return {"documents": digest(self, len(self))}


def digest(source: Source, most: int = 64) -> str:
  """How many documents there are, and a hash of `most` of them."""
  found = hashlib.blake2b(digest_size=8)
  for k in range(min(most, len(source))):
    example = source[k * len(source) // min(most, len(source))]
    for text in (example.prompt, example.completion):
      content = text.encode("utf-8", "surrogatepass")
      found.update(len(content).to_bytes(8, "little") + content)
  return f"{len(source)}, {found.hexdigest()}"


def check_split(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"unknown {split=}; known: {', '.join(SPLITS)}")


def split_of(key: str) -> str:
  """The split that owns everything named `key`, for ever and in every process.

  Whole documents are held out, never pieces of them: of a piece the model has seen the rest.
  """
  return "test" if hash_text(key) % 100 < TEST_PERCENT else "train"
