"""Documents as ids: in memory, memory-mapped, or made on demand.

A document is prompt + completion + EOS, or a conversation as the tokenizer's chat template writes
it. `open_corpus` gives whichever form the source asks for.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dlm import files
from dlm.data import lines, spans
from dlm.data.array_records import StoredRows, open_array_records
from dlm.data.chat import Conversation, template_of
from dlm.data.sources import Example, Source, open_source
from dlm.data.sources.example import check_split
from dlm.data.sources.pairs import read_pairs
from dlm.data.specials import Spelled
from dlm.data.tokenizers import Tokenizer
from dlm.data.told_rows import open_told_rows
from dlm.data.traces import read_traces

META, LEARNED = "meta.json", "learned.npy"
ENCODE_AT_ONCE = 512


class Document(NamedTuple):
  ids_T: np.ndarray  # EOS included
  prompt: int  # how many of them come before the first that is learned
  learned_T: np.ndarray | None = None  # bool; None: all after the prompt
  when_T: np.ndarray | None = None  # the forward that wrote each, -1: it was given; None: unknown


class Corpus(Protocol):
  name: str
  traced: bool  # its documents tell which forward wrote each token
  paired: bool  # documents 2i and 2i + 1 answer the same prompt, the first of them better
  notes: tuple[str, ...]  # what whoever trains on it should know, a line each

  def __len__(self) -> int: ...
  def documents(self, index: Iterable[int]) -> list[Document]: ...

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
  learned_T: np.ndarray | None = None  # bool; None: all after the prompts
  notes: tuple[str, ...] = ()
  when_T: np.ndarray | None = None  # as a document's
  paired: bool = False

  @property
  def traced(self) -> bool:
    return self.when_T is not None

  def __len__(self) -> int:
    return len(self.prompt_N)

  def documents(self, index: Iterable[int]) -> list[Document]:
    found = []
    for i in index:
      part = slice(self.start_N[i], self.start_N[i + 1])
      own = (None if each is None else each[part] for each in (self.learned_T, self.when_T))
      found.append(Document(self.tokens_T[part], int(self.prompt_N[i]), *own))
    return found


@dataclasses.dataclass(frozen=True)
class GeneratedCorpus:
  """Encodes an item when it is asked for: for sources that store nothing."""

  source: Source
  encoder: "Encoder"
  notes = ()
  traced = paired = False

  @property
  def name(self) -> str:
    return self.source.name

  def __len__(self) -> int:
    return len(self.source)

  def documents(self, index: Iterable[int]) -> list[Document]:
    return self.encoder([self.source[i] for i in index])

  def fingerprint(self) -> dict[str, str]:
    return self.source.fingerprint()


class Encoder:
  """Examples to documents, and what is to be said about them.

  Args:
    parse_specials: a special token that plain text spells is that token; else it is letters.
    silent: (LEFT, RIGHT): what stands between them, and they, is read and not learned, see
      `dlm.data.spans`. They are found among ids: text whose ids depend on its neighbours is not.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    parse_specials: bool = False,
    silent: tuple[str, str] | None = None,
  ):
    self._tokenizer, self._parse_specials = tokenizer, parse_specials
    self._spelled = Spelled(tokenizer)
    self._silent = None if silent is None else [self._spelled.encode(each) for each in silent]
    self._counts: Counter[str] = Counter()
    self._turns = self._unlearned = self._with_spans = 0

  def __call__(self, examples: Sequence[Example]) -> list[Document]:
    """Refuses text that encodes to the mask: it would be taken for noise."""
    plain = self._plain([example for example in examples if example.talk is None])
    talks = self._talks([example.talk for example in examples if example.talk is not None])
    found = [next(plain if example.talk is None else talks) for example in examples]
    mask_id = self._tokenizer.mask_id
    for example, document in zip(examples, found, strict=True):
      if (document.ids_T == mask_id).any():
        raise ValueError(
          f"{mask_id=} occurs in a text, choose another mask token;"
          f" the text begins {(example.prompt + example.completion)[:60]!r}"
        )
    return found if self._silent is None else [self._without_spans(each) for each in found]

  def _without_spans(self, document: Document) -> Document:
    kept_T = spans.outside(document.ids_T, *self._silent)
    self._with_spans += not kept_T.all()
    return document._replace(learned_T=learned(document) & kept_T)

  def notes(self, name: str) -> tuple[str, ...]:
    """Of the examples so far."""
    found = []
    if self._counts and not self._parse_specials:
      most = ", ".join(f"{spelling} {n}" for spelling, n in self._counts.most_common(4))
      found.append(
        f"WARNING: {name}: plain text spells special tokens {self._counts.total()} times ({most}),"
        " which are learned as letters; the source's option parse_specials=True reads the tokens"
      )
    if self._silent and not self._with_spans:
      found.append(f"WARNING: {name}: the marks of the option silent stand in none of its texts")
    if self._unlearned:
      found.append(
        f"{name}: {self._unlearned} of {self._turns} turns of the assistant are not learned: the"
        " chat template writes them otherwise once more is said; end a conversation at each"
      )
    return tuple(found)

  def _plain(self, examples: list[Example]) -> Iterator[Document]:
    texts = [[example.prompt for example in examples], [each.completion for each in examples]]
    for text in [*texts[0], *texts[1]]:
      self._counts += self._spelled.count(text)
    if self._parse_specials:
      prompts, completions = ([self._spelled.encode(text) for text in each] for each in texts)
    else:
      prompts, completions = map(self._tokenizer.encode_batch, texts)
    eos = np.asarray([self._tokenizer.eos_id], np.int32)
    for prompt, completion in zip(prompts, completions, strict=True):
      yield Document(np.concatenate([prompt, completion, eos]), prompt.size)

  def _talks(self, talks: list[Conversation]) -> Iterator[Document]:
    if not talks:
      return
    for lesson in template_of(self._tokenizer).lessons(talks, self._tokenizer):
      self._turns += lesson.turns
      self._unlearned += lesson.unlearned
      ids_T, learned_T = lesson.ids_T, lesson.learned_T
      if ids_T[-1] != self._tokenizer.eos_id:
        ids_T = np.append(ids_T, np.int32(self._tokenizer.eos_id))
        learned_T = np.append(learned_T, True)
      yield Document(ids_T, int(learned_T.argmax()), learned_T)


def encoded(
  source: Source, encoder: Encoder, index: Sequence[int] | None = None
) -> Iterator[Document]:
  """Each document of `index`, None: of the source, in order."""
  index = range(len(source)) if index is None else index
  for first in range(0, len(index), ENCODE_AT_ONCE):
    yield from encoder([source[i] for i in index[first : first + ENCODE_AT_ONCE]])


def tokenize(source: Source, tokenizer: Tokenizer, **options) -> TokenCorpus:
  """Encodes a whole source into memory; `options`: see `Encoder`."""
  encoder = Encoder(tokenizer, **options)
  made = joined(source.name, list(encoded(source, encoder)), source.fingerprint)
  return dataclasses.replace(made, notes=encoder.notes(source.name))


def joined(
  name: str, documents: Sequence[Document], fingerprint: Callable[[], dict[str, str]]
) -> TokenCorpus:
  """Documents end to end, in memory."""
  sizes = [0] + [document.ids_T.size for document in documents]
  learned_T = None
  if any(document.learned_T is not None for document in documents):
    learned_T = np.concatenate([learned(document) for document in documents])
  return TokenCorpus(
    name=name,
    tokens_T=np.concatenate([document.ids_T for document in documents]),
    start_N=np.cumsum(sizes, dtype=np.int64),
    prompt_N=np.asarray([document.prompt for document in documents], np.int32),
    fingerprint=fingerprint,
    learned_T=learned_T,
  )


def learned(document: Document) -> np.ndarray:
  """Bool, by token."""
  if document.learned_T is not None:
    return document.learned_T
  return np.arange(document.ids_T.size) >= document.prompt


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
  learned_T = None
  if (root / split / LEARNED).exists():
    paths.append(root / split / LEARNED)
    learned_T = _mapped(paths[-1], kinds="b")
  if (
    len(start_N) != len(prompt_N) + 1
    or start_N[0] != 0
    or start_N[-1] != len(tokens_T)
    or (np.diff(start_N) < prompt_N).any()
    or (learned_T is not None and len(learned_T) != len(tokens_T))
  ):
    names = " and ".join(path.name for path in paths[1:])
    raise ValueError(f"tokens: {root / split}: {names} do not cut up tokens.npy")

  def fingerprint() -> dict[str, str]:
    return {str(path): files.fingerprint(path) for path in paths}

  name, notes = f"tokens:{meta['source']}", tuple(meta.get("notes", ()))
  return TokenCorpus(name, tokens_T, start_N, prompt_N, fingerprint, learned_T, notes)


def open_traces(paths: str, split: str, tokenizer: Tokenizer) -> TokenCorpus:
  """What `dlm.data.traces.read_traces` reads; all that was written is learned."""
  rows, whens, left_out = read_traces(paths, split, tokenizer)
  when_T = np.concatenate(whens)
  note = f"traces: {left_out} answers that ran out of forwards are left out"
  return TokenCorpus(
    name="traces",
    tokens_T=np.concatenate(rows),
    start_N=np.cumsum([0, *map(len, rows)], dtype=np.int64),
    prompt_N=np.array([(each >= 0).argmax() for each in whens], np.int32),
    fingerprint=lambda: {str(path): files.fingerprint(path) for path in lines.found(paths)},
    learned_T=when_T >= 0,
    notes=(note,) if left_out else (),
    when_T=when_T,
  )


def open_pairs(paths: str, split: str, tokenizer: Tokenizer, **options) -> TokenCorpus:
  """What `dlm.data.sources.pairs.read_pairs` reads; `options`: see `Encoder`."""
  made = tokenize(read_pairs(paths, split), tokenizer, **options)
  return dataclasses.replace(made, paired=True)


def _checked(meta: Any, path: pathlib.Path) -> dict[str, Any]:
  kinds = {"source": str, "fingerprint": str, "splits": dict}
  for field, kind in kinds.items():
    if not isinstance(meta, dict) or not isinstance(meta.get(field), kind):
      raise ValueError(f"tokens: {path}: field {field} must be there, of type {kind.__name__}")
  return meta


# Sources of ids: name -> (path, split, tokenizer) -> corpus.
STORED = {
  "tokens": open_tokens,
  "traces": open_traces,
  "arrayrecord": open_array_records,
  "targets": open_told_rows,
}


def _mapped(path: pathlib.Path, kinds: str = "iu") -> np.ndarray:
  try:
    found = np.load(files.regular(path), mmap_mode="r")
  except (ValueError, EOFError) as error:
    raise ValueError(f"tokens: {path} cannot be read: {error}") from error
  if found.ndim != 1 or found.dtype.kind not in kinds:
    wanted = "whole numbers" if kinds == "iu" else "true and false"
    raise ValueError(f"tokens: {path} holds {found.dtype}{found.shape}, not a row of {wanted}")
  return found


def open_corpus(
  spec: str,
  tokenizer: Tokenizer,
  *,
  split: str = "train",
  seed: int = 0,
  parse_specials: bool = False,
  silent: tuple[str, str] | None = None,
  **options,
) -> TokenCorpus | GeneratedCorpus | StoredRows:
  """A source spec of `open_source`, or one of `STORED`: `tokens:DIR`, ...

  `parse_specials`, `silent`: see `Encoder`.
  """
  if type(parse_specials) is not bool:
    raise ValueError(f"{spec}: {parse_specials=} must be true or false")
  match silent:
    case None:
      pass
    case [str(left), str(right)] if left and right:
      silent = left, right
    case _:
      raise ValueError(f"{spec}: silent={silent!r} must be (LEFT, RIGHT), two texts")
  kind, _, argument = spec.partition(":")
  own = {"parse_specials": parse_specials, "silent": silent}
  if kind == "pairs":
    if options:
      raise ValueError(f"pairs: takes {' and '.join(own)}, has {sorted(options)}")
    return open_pairs(argument, split, tokenizer, **own)
  if kind in STORED:
    if given := sorted([*options, *(name for name in own if own[name])]):
      raise ValueError(f"{kind}: takes no options, has {given}")
    return STORED[kind](argument, split, tokenizer)
  source = open_source(spec, split, seed=seed, **options)
  if source.generated:
    return GeneratedCorpus(source, Encoder(tokenizer, **own))
  return tokenize(source, tokenizer, **own)
