"""Documents as ids: in memory, memory-mapped, or made on demand.

A document is prompt + completion + EOS. `open_corpus` gives whichever form the source asks for.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from dlm import files
from dlm.data.sources import Example, Source, open_source
from dlm.data.sources.example import check_split
from dlm.data.tokenizers import Tokenizer

META = "meta.json"
ENCODE_AT_ONCE = 512


class Corpus(Protocol):
  name: str

  def __len__(self) -> int: ...
  def documents(self, index: Iterable[int]) -> list[tuple[np.ndarray, int]]:
    """Ids, EOS included, and how many of them are the prompt, of each document asked for."""
    ...

  def fingerprint(self) -> dict[str, str]:
    """As a source's."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCorpus:
  """N documents end to end: document i is `tokens[start[i]:start[i + 1]]`."""

  name: str
  tokens_T: np.ndarray  # uint16, uint32 or int32; may be a memory map
  start_N: np.ndarray  # int64, N + 1 entries
  prompt_N: np.ndarray  # int32, N entries
  fingerprint: Callable[[], dict[str, str]]

  def __len__(self) -> int:
    return len(self.prompt_N)

  def documents(self, index: Iterable[int]) -> list[tuple[np.ndarray, int]]:
    start_N, prompt_N = self.start_N, self.prompt_N
    return [(self.tokens_T[start_N[i] : start_N[i + 1]], int(prompt_N[i])) for i in index]


@dataclasses.dataclass(frozen=True)
class GeneratedCorpus:
  """Encodes an item when it is asked for: for sources that store nothing."""

  source: Source
  tokenizer: Tokenizer

  @property
  def name(self) -> str:
    return self.source.name

  def __len__(self) -> int:
    return len(self.source)

  def documents(self, index: Iterable[int]) -> list[tuple[np.ndarray, int]]:
    return _encode([self.source[i] for i in index], self.tokenizer)

  def fingerprint(self) -> dict[str, str]:
    return self.source.fingerprint()


def encoded(source: Source, tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
  """Ids and prompt size of each document, in order."""
  for first in range(0, len(source), ENCODE_AT_ONCE):
    last = min(first + ENCODE_AT_ONCE, len(source))
    yield from _encode([source[i] for i in range(first, last)], tokenizer)


def _encode(examples: list[Example], tokenizer: Tokenizer) -> list[tuple[np.ndarray, int]]:
  """Refuses text that encodes to the mask: it would be taken for noise."""
  prompts = tokenizer.encode_batch([example.prompt for example in examples])
  completions = tokenizer.encode_batch([example.completion for example in examples])
  eos = np.asarray([tokenizer.eos_id], np.int32)
  out = []
  for example, prompt, completion in zip(examples, prompts, completions, strict=True):
    ids = np.concatenate([prompt, completion, eos])
    if (ids == tokenizer.mask_id).any():
      raise ValueError(
        f"mask_id={tokenizer.mask_id} occurs in a text, choose another mask token;"
        f" the text begins {(example.prompt + example.completion)[:60]!r}"
      )
    out.append((ids, prompt.size))
  return out


def tokenize(source: Source, tokenizer: Tokenizer) -> TokenCorpus:
  """Encodes a whole source into memory."""
  documents = list(encoded(source, tokenizer))
  sizes = [0] + [ids.size for ids, _ in documents]
  return TokenCorpus(
    name=source.name,
    tokens_T=np.concatenate([ids for ids, _ in documents]),
    start_N=np.cumsum(sizes, dtype=np.int64),
    prompt_N=np.asarray([prompt for _, prompt in documents], np.int32),
    fingerprint=source.fingerprint,
  )


def open_tokens(directory: str, split: str, tokenizer: Tokenizer) -> TokenCorpus:
  """Memory-maps what `dlm.data.prepare.write_tokens` wrote with an equal tokenizer."""
  check_split(split)
  root = pathlib.Path(directory)
  if not (root / META).is_file():
    raise ValueError(
      f"tokens: {root / META} is missing: not written by experiments/prepare_data.py"
    )
  meta = _checked(files.read_json(root / META), root / META)
  if meta["fingerprint"] != tokenizer.fingerprint:
    raise ValueError(
      f"tokens: {root} was written with tokenizer {meta['fingerprint']}, not"
      f" {tokenizer.fingerprint}; load its own with saved:{root / 'tokenizer'}"
    )
  if split not in meta["splits"]:
    raise ValueError(f"tokens: {root} has no {split=}; has {sorted(meta['splits'])}")
  paths = [root / split / f"{name}.npy" for name in ("tokens", "start", "prompt")]
  tokens_T, start_N, prompt_N = map(_mapped, paths)
  if (
    len(start_N) != len(prompt_N) + 1
    or start_N[0] != 0
    or start_N[-1] != len(tokens_T)
    or (np.diff(start_N) < prompt_N).any()
  ):
    raise ValueError(f"tokens: {root / split}: start.npy and prompt.npy do not cut up tokens.npy")

  def fingerprint() -> dict[str, str]:
    return {str(path): files.fingerprint(path) for path in paths}

  return TokenCorpus(f"tokens:{meta['source']}", tokens_T, start_N, prompt_N, fingerprint)


def _checked(meta: Any, path: pathlib.Path) -> dict[str, Any]:
  kinds = {"source": str, "fingerprint": str, "splits": dict}
  for field, kind in kinds.items():
    if not isinstance(meta, dict) or not isinstance(meta.get(field), kind):
      raise ValueError(f"tokens: {path}: field {field} must be there, of type {kind.__name__}")
  return meta


def _mapped(path: pathlib.Path) -> np.ndarray:
  try:
    found = np.load(files.regular(path), mmap_mode="r")
  except (ValueError, EOFError) as error:
    raise ValueError(f"tokens: {path} cannot be read: {error}") from error
  if found.ndim != 1 or found.dtype.kind not in "iu":
    raise ValueError(f"tokens: {path} holds {found.dtype}{found.shape}, not a row of whole numbers")
  return found


def open_corpus(
  spec: str, tokenizer: Tokenizer, *, split: str = "train", seed: int = 0, **options
) -> TokenCorpus | GeneratedCorpus:
  """A source spec of `open_source`, or `tokens:DIR`."""
  if spec.partition(":")[0] == "tokens":
    if options:
      raise ValueError(f"tokens: takes no options, has {sorted(options)}")
    return open_tokens(spec.partition(":")[2], split, tokenizer)
  source = open_source(spec, split, seed=seed, **options)
  return GeneratedCorpus(source, tokenizer) if source.generated else tokenize(source, tokenizer)
