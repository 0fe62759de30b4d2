"""Training rows as a pure function of (seed, step).

The global batch of a step is rows step * batch .. step * batch + batch - 1 of an endless stream,
however many hosts read it: host h holds the contiguous slice [h * batch / n, (h + 1) * batch / n),
the order in which `jax.make_array_from_process_local_data` lays shards over the data axis. Row g is
drawn by hashing (seed, g), so resuming needs the step alone and neighbours are unrelated: noise
levels that are stratified over a batch meet no order in the data.

A single part is seen once per epoch, in a new order each time. In a mixture each row chooses its
part by weight, and a part's epoch is thinned accordingly.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from dlm.data.array_records import StoredRows
from dlm.data.corpus import Corpus, open_corpus
from dlm.data.layouts import Packed, Padded, Pairs, RowBatch, Stored, TracedRowBatch
from dlm.data.stateless import hash_words
from dlm.data.tokenizers import Tokenizer
from dlm.data.told_rows import ToldRows
from dlm.seeds import check_seed

MODES = {  # -> the fields of `MixturePart` that it goes by
  "pack": ("document_mask",),
  "pad": ("pad", "per_row", "too_long"),
}
LOUD = 0.02  # share of a source's examples that do not fit, from which on a warning says so


class RowStream(Protocol):
  """A corpus as an endless stream of rows."""

  epoch_rows: int
  alone: bool  # every row is one example, and padding
  report: dict[str, int | str]

  def rows(self, row_B: np.ndarray) -> RowBatch | TracedRowBatch: ...


@dataclasses.dataclass(frozen=True)
class MixturePart:
  """One corpus of a mixture, and how it is laid out in rows."""

  corpus: Corpus | StoredRows
  weight: float = 1.0
  mode: str = "pack"
  pad: str = "eos"
  per_row: int = 1
  document_mask: bool = True
  too_long: str = "truncate"

  def __post_init__(self):
    for field, kind in (("per_row", int), ("document_mask", bool)):
      if type(getattr(self, field)) is not kind:
        value = getattr(self, field)
        raise ValueError(f"{self.corpus.name}: {field}={value!r} must be of type {kind.__name__}")

  def layout(self, tokenizer: Tokenizer, length: int, key: tuple[int, ...] | None) -> RowStream:
    """`key` names the shuffle; None keeps the corpus's order."""
    chosen = chosen_layout(self.corpus.name, vars(self))
    if isinstance(self.corpus, StoredRows):
      self._check_stored(self.corpus, chosen | {"length": length})
      return Stored(self.corpus, key)
    if self.corpus.paired:
      if self.mode != "pad" or self.per_row != 1:
        raise ValueError(
          f"pairs: mode={self.mode!r}, per_row={self.per_row} must be 'pad' and 1: an answer a row"
        )
      return Pairs(self.corpus, tokenizer, length, self.pad, self.too_long, key)
    if self.mode == "pack":
      return Packed(self.corpus, length, self.document_mask, key)
    return Padded(self.corpus, tokenizer, length, self.pad, self.per_row, self.too_long, key)

  def _check_stored(self, stored: StoredRows, chosen: Mapping[str, Any]) -> None:
    """What is laid out already is taken as it is: ValueError if something else is asked for."""
    for field, value in (*stored.layout.items(), ("length", stored.length)):
      if chosen.get(field) != value:
        given = getattr(self, field, chosen.get(field))
        raise ValueError(f"{stored.name}: {field}={given!r} must be {value!r}, as its rows are")


def chosen_layout(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  """The mode, and the fields that it goes by; a ValueError on the mode begins with `name`."""
  mode = fields.get("mode", MixturePart.mode)
  if mode not in MODES:
    raise ValueError(f"{name}: unknown {mode=}; known: {', '.join(MODES)}")
  return {"mode": mode} | {
    field: fields.get(field, getattr(MixturePart, field)) for field in MODES[mode]
  }


LAYOUT_OPTIONS = ("mode", *(field for fields in MODES.values() for field in fields))


class Rows:
  """`rows[step]` is this host's `RowBatch` (of traces alone `TracedRowBatch`), for any step >= 0.

  `epoch_rows` is the size of one epoch of each part, `report` what was cut or dropped.
  """

  def __init__(
    self,
    parts: Iterable[MixturePart],
    tokenizer: Tokenizer,
    *,
    length: int,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
  ):
    parts = tuple(parts)
    _check(parts, length, batch, process_index, process_count)
    check_seed(seed)
    self._corpora = [part.corpus for part in parts]
    self._layouts = [
      part.layout(tokenizer, length, (seed, i) if shuffle else None) for i, part in enumerate(parts)
    ]
    weights = np.asarray([part.weight for part in parts], np.float64)
    self._bounds = np.cumsum(weights / weights.sum())[:-1]
    self._seed, self._batch, self._length = seed, batch, length
    self._local = batch // process_count
    self._offset = process_index * self._local
    self.epoch_rows = tuple(layout.epoch_rows for layout in self._layouts)
    self.report = tuple(layout.report for layout in self._layouts)

  @property
  def alone(self) -> bool:
    """Every row is one example, and padding."""
    return all(each.alone for each in self._layouts)

  @property
  def told(self) -> Mapping[str, Any] | None:
    """index.json of rows of which a teacher has told all; None: of others."""
    (first, *more) = self._corpora
    return None if more else getattr(first, "told", None)

  @property
  def paired(self) -> bool:
    """Rows 2i and 2i + 1 answer the same prompt, and "advantage_B" tells which of them better."""
    return any(corpus.paired for corpus in self._corpora)

  @property
  def traced(self) -> bool:
    """Every row tells which forward wrote each of its tokens."""
    return all(corpus.traced for corpus in self._corpora)

  def notes(self) -> list[str]:
    """What to know of the sources, a line each; of examples that do not fit, how many there are."""
    left_out = [line for layout in self._layouts if (line := _left_out(layout.report))]
    return [*left_out, *(note for corpus in self._corpora for note in corpus.notes)]

  def fingerprint(self) -> dict[str, str]:
    """Each part of each source -> a word that changes when the part does."""
    return {
      f"source {i}, {corpus.name}: {part}": word
      for i, corpus in enumerate(self._corpora)
      for part, word in corpus.fingerprint().items()
    }

  def __getitem__(self, step: int) -> RowBatch | TracedRowBatch:
    if step < 0:
      raise IndexError(f"{step=} must not be negative")
    row_B = step * self._batch + self._offset + np.arange(self._local, dtype=np.int64)
    if len(self._layouts) == 1:
      return self._layouts[0].rows(row_B)
    # 53 bits of the hash as a float in [0, 1).
    uniform_B = (hash_words(self._seed, len(self._layouts), row_B) >> np.uint64(11)) * 2.0**-53
    part_B = np.searchsorted(self._bounds, uniform_B, side="right")
    shape = (self._local, self._length)
    out = RowBatch(*(np.zeros(shape, dtype) for dtype in (np.int32, bool, np.int32, np.int32)))
    if self.traced:
      out = TracedRowBatch(*out, {"when": np.zeros(shape, np.int32)})
    for i, layout in enumerate(self._layouts):
      if (where := np.flatnonzero(part_B == i)).size:
        part = layout.rows(row_B[where])
        for field, values in zip(out[:4], part[:4], strict=True):
          field[where] = values
        if self.traced:
          out.extra["when"][where] = part.extra["when"]
    return out


def _left_out(report: Mapping[str, int | str]) -> str:
  dropped, cut = report.get("dropped", 0), report.get("truncated", 0)
  if not dropped + cut:
    return ""
  share = (dropped + cut) / report["documents"]
  line = (
    f"{report['name']}: of {report['documents']} examples {dropped} are left out and {cut} are cut,"
    f" which do not fit {report['columns']} tokens"
  )
  return f"WARNING: {share:.0%} of {line}" if share > LOUD else line


def open_rows(
  sources: Iterable[tuple],
  tokenizer: Tokenizer,
  *,
  length: int,
  batch: int,
  seed: int,
  split: str = "train",
  process_index: int = 0,
  process_count: int = 1,
  shuffle: bool = True,
  **layout,
) -> Rows:
  """Rows of sources given as (spec, weight) or (spec, weight, options).

  `layout` sets fields of every source's `MixturePart`; `options` (a mapping or pairs) override them
  for one source, and hold that source's own options besides.
  """
  if unknown := set(layout) - set(LAYOUT_OPTIONS):
    raise ValueError(f"unknown options {sorted(unknown)}; known: {', '.join(LAYOUT_OPTIONS)}")
  parts = []
  for spec, weight, options in _sources(sources):
    own = {key: value for key, value in options.items() if key not in LAYOUT_OPTIONS}
    chosen = layout | {key: value for key, value in options.items() if key in LAYOUT_OPTIONS}
    corpus = open_corpus(spec, tokenizer, split=split, seed=seed, **own)
    parts.append(MixturePart(corpus, weight, **chosen))
  return Rows(
    parts,
    tokenizer,
    length=length,
    batch=batch,
    seed=seed,
    process_index=process_index,
    process_count=process_count,
    shuffle=shuffle,
  )


def _sources(given: Any) -> Iterator[tuple[str, float, dict[str, Any]]]:
  if not isinstance(given, list | tuple):
    raise ValueError(f"sources={given!r:.80} must be a list of (NAME, WEIGHT) or more")
  for i, source in enumerate(given):
    match source:
      case [str(spec), int() | float() as weight]:
        yield spec, weight, {}
      case [str(spec), int() | float() as weight, Mapping() as options]:
        yield spec, weight, dict(options)
      case [str(spec), int() | float() as weight, [*pairs]] if all(map(_is_option, pairs)):
        yield spec, weight, dict(pairs)
      case _:
        raise ValueError(
          f"sources[{i}]={source!r:.80} must be (NAME, WEIGHT) or (NAME, WEIGHT, ((OPTION, VALUE),"
          " ...))"
        )


def _is_option(pair: Any) -> bool:
  return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _check(parts, length: int, batch: int, process_index: int, process_count: int) -> None:
  if not parts:
    raise ValueError("rows need at least one source")
  if length < 2:
    raise ValueError(f"{length=} must be at least 2")
  if batch < 1 or batch % process_count:
    raise ValueError(f"{batch=} must be positive and divide by {process_count=}")
  if not 0 <= process_index < process_count:
    raise ValueError(f"{process_index=} must be within 0..{process_count - 1}")
  if len(parts) > 1:
    if any(isinstance(part.corpus, ToldRows) for part in parts):
      raise ValueError("targets: rows that a teacher has told of are a run's only source")
    if any(part.corpus.paired for part in parts):
      raise ValueError("pairs: rows in pairs are a run's only source")
  for part in parts:
    if not 0 < part.weight < math.inf:
      raise ValueError(f"{part.corpus.name}: weight={part.weight} must be positive and finite")
