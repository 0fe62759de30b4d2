"""Writes a source as rows ready to train on: see `dlm.data.array_records`.

A shard follows from the source and its number alone, so any number of processes share the work, and
one that was interrupted goes on at its next shard. Whoever finds all shards whole writes the index.
Every process holds the text of the whole source in memory.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dlm import files
from dlm.data.array_records import COUNTS, INDEX, VERSION, fill, record_type, shard_name
from dlm.data.corpus import Document, Encoder, encoded, joined
from dlm.data.layouts import RowBatch, check_padded, unfit
from dlm.data.prepare import Progress, silent
from dlm.data.rows import LAYOUT_OPTIONS, MixturePart, chosen_layout
from dlm.data.sources import SPLITS, Source, open_source
from dlm.data.tokenizers import Tokenizer

ROWS_AT_ONCE = 256  # in memory as four arrays of int32


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """What all shards of a folder have in common.

  Args:
    spec, options, seed: of the source.
    length: tokens a row.
    shards: files a split; fewer where it has fewer documents.
    layout: fields of `MixturePart`, those that a run's `data` table has too.
  """

  spec: str
  length: int
  shards: int = 1
  seed: int = 0
  parse_specials: bool = False
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  layout: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.length < 2:
      raise ValueError(f"length={self.length} must be at least 2")
    if self.shards < 1:
      raise ValueError(f"shards={self.shards} must be at least 1")
    if unknown := set(self.layout) - set(LAYOUT_OPTIONS):
      known = ", ".join(LAYOUT_OPTIONS)
      raise ValueError(f"layout: unknown {sorted(unknown)}; known: {known}")
    layout = chosen_layout(self.spec, self.layout)
    if layout.pop("mode") == "pad":
      check_padded(self.spec, self.length, **layout)

  def source(self, split: str) -> Source:
    return open_source(self.spec, split, seed=self.seed, **self.options)

  def cuts(self, source: Source) -> list[range]:
    """The documents of each shard."""
    size, count = len(source), min(self.shards, len(source))
    return [range(i * size // count, (i + 1) * size // count) for i in range(count)]

  def record(self, tokenizer: Tokenizer, sources: dict[str, Source]) -> dict[str, Any]:
    """As JSON: equal records, equal shards."""
    return {
      "version": VERSION,
      "source": self.spec,
      "options": {name: repr(value) for name, value in sorted(self.options.items())},
      "seed": self.seed,
      "parse_specials": self.parse_specials,
      "texts": {split: source.fingerprint() for split, source in sources.items()},
      "tokenizer": tokenizer.fingerprint,
      "ids": tokenizer.vocab_size,
      "length": self.length,
      "layout": chosen_layout(self.spec, self.layout),
      "shards": self.shards,
    }


def write_rows(
  out: str,
  plan: RowPlan,
  tokenizer: Tokenizer,
  *,
  worker: int = 0,
  workers: int = 1,
  progress: Progress = silent,
) -> dict[str, Any]:
  """Writes every `workers`-th shard, from number `worker` on; those that are whole stay.

  Returns:
    "written", "kept": how many shards; "complete": those of all workers are there, and the index;
    "notes": on what was written now, a line each.

  Raises:
    ValueError: `out` holds shards of another plan, or another process writes the same shard.
  """
  if not 0 <= worker < workers:
    raise ValueError(f"{worker=} must be within 0..{workers - 1}")
  sources = {split: plan.source(split) for split in SPLITS}
  record = plan.record(tokenizer, sources)
  _of_plan(pathlib.Path(out) / INDEX, record)
  shards = [
    _Shard(pathlib.Path(out), split, i, len(cuts), cut)
    for split in SPLITS
    for cuts in [plan.cuts(sources[split])]
    for i, cut in enumerate(cuts)
  ]
  own = shards[worker::workers]
  todo = [shard for shard in own if shard.said(record) is None]
  encoder = Encoder(tokenizer, plan.parse_specials)
  pathlib.Path(out).mkdir(parents=True, exist_ok=True)
  for split in SPLITS:
    here = [shard for shard in todo if shard.split == split]
    found = (encoded(sources[split], encoder, shard.index) for shard in here)
    total = sum(len(shard.index) for shard in here)
    documents = iter(progress(itertools.chain.from_iterable(found), total, split))
    for shard in here:
      own_documents = list(itertools.islice(documents, len(shard.index)))
      shard.write(record, plan, tokenizer, own_documents)
    next(documents, None)  # the bar is full, and ends
  return {
    "written": len(todo),
    "kept": len(own) - len(todo),
    "complete": _finished(pathlib.Path(out), record, tokenizer, shards),
    "notes": encoder.notes(plan.spec),
  }


@dataclasses.dataclass(frozen=True)
class _Shard:
  folder: pathlib.Path
  split: str
  number: int
  count: int
  index: range  # its documents

  @property
  def path(self) -> pathlib.Path:
    return self.folder / shard_name(self.split, self.number, self.count)

  def said(self, record: dict[str, Any]) -> dict[str, Any] | None:
    """What it holds, if it is whole; ValueError where that is of another plan."""
    return _of_plan(self.path.with_suffix(".json"), record)

  def write(
    self,
    record: dict[str, Any],
    plan: RowPlan,
    tokenizer: Tokenizer,
    documents: list[Document],
  ) -> None:
    counts, batches = _laid_out(documents, plan, tokenizer)
    kind, path = record_type(plan.length, tokenizer.vocab_size), self.path
    rows = (row for batch in batches for row in _records(batch, kind))
    counts |= fill(path.with_suffix(".array_record"), rows)
    files.write_json(path.with_suffix(".json"), record | counts)


def _laid_out(
  documents: Sequence[Document], plan: RowPlan, tokenizer: Tokenizer
) -> tuple[dict[str, Any], Iterator[RowBatch]]:
  """Counts, and rows that hold each document once: what is left of the last row is padding."""
  layout = chosen_layout(plan.spec, plan.layout)
  size_N = np.asarray([document.ids_T.size for document in documents])
  total, dropped, cut = int(size_N.sum()), 0, 0
  if layout["mode"] == "pad":
    slot, per_row = plan.length // layout["per_row"], layout["per_row"]
    prompt_N = np.asarray([document.prompt for document in documents])
    dropped, cut = (int(n.sum()) for n in unfit(size_N, prompt_N, slot, layout["too_long"]))
    kept = len(documents) - dropped
    rows = -(-kept // per_row)
    used = slot * (kept - (rows - 1) * per_row)
  else:
    rows = -(-total // plan.length)
    used = plan.length - (rows * plan.length - total)
    filling = np.full(plan.length - used, tokenizer.pad_id, np.int32)
    documents = [*documents, Document(filling, filling.size)] if filling.size else documents
  counts = dict(zip(COUNTS, (rows, len(size_N), total, dropped, cut), strict=True))

  def batches() -> Iterator[RowBatch]:
    if not rows:
      return
    corpus = joined(plan.spec, documents, dict)
    stream = MixturePart(corpus, **layout).layout(tokenizer, plan.length, None)
    for first in range(0, rows, ROWS_AT_ONCE):
      batch = stream.rows(np.arange(first, min(first + ROWS_AT_ONCE, rows)))
      if first + ROWS_AT_ONCE >= rows:
        batch.tokens_BxL[-1, used:] = tokenizer.pad_id
        batch.noisable_BxL[-1, used:] = False
        batch.segment_BxL[-1, used:] = 0
      yield batch

  return counts, batches()


def _records(batch: RowBatch, kind: np.dtype) -> np.ndarray:
  record_B = np.zeros(len(batch.tokens_BxL), kind)
  record_B["tokens"], record_B["segment"] = batch.tokens_BxL, batch.segment_BxL
  record_B["noisable"] = np.packbits(batch.noisable_BxL, axis=1)
  return record_B


def _of_plan(path: pathlib.Path, record: dict[str, Any]) -> dict[str, Any] | None:
  """The file's JSON, if it is there; ValueError where it says otherwise than `record`."""
  if not path.exists():
    return None
  found = files.read_json(path)
  was = found if isinstance(found, dict) else {}
  for field, value in record.items():
    if was.get(field) != value:
      raise ValueError(
        f"{path}: {field}={was.get(field)!r:.200}, not {value!r:.200}: write elsewhere"
      )
  return found


def _finished(
  folder: pathlib.Path, record: dict[str, Any], tokenizer: Tokenizer, shards: list[_Shard]
) -> bool:
  """Writes the index, if all shards are there; is it?"""
  found = [(shard.split, shard.said(record)) for shard in shards]
  if any(said is None for _, said in found):
    return False
  if _of_plan(folder / INDEX, record):
    return True
  splits: dict[str, list[dict]] = {split: [] for split in SPLITS}
  for split, said in found:
    splits[split].append({key: said[key] for key in (*COUNTS, "bytes", "hash")})
  with contextlib.suppress(files.InUse):  # another worker has found the same, and writes it
    tokenizer.save(folder / "tokenizer")
    files.write_json(folder / INDEX, record | {"splits": splits})
  return True
