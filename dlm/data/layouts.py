"""How documents become rows: cut from one stream, padded one by one, or as they were stored."""

from typing import NamedTuple

import numpy as np

from dlm.data.array_records import StoredRows
from dlm.data.corpus import Corpus, GeneratedCorpus, TokenCorpus
from dlm.data.stateless import hash_words, permuted
from dlm.data.tokenizers import Tokenizer

PADS = ("eos", "none")
TOO_LONG = ("truncate", "drop")
PROBED = 64  # generated items looked at before work starts


class RowBatch(NamedTuple):
  """One host's rows; fields as in `dlm.types.Batch`."""

  tokens_BxL: np.ndarray  # int32
  noisable_BxL: np.ndarray  # bool: False on prompt and padding
  segment_BxL: np.ndarray  # int32: 1, 2, ... by document, 0 on padding
  position_BxL: np.ndarray  # int32: restarts in every segment


class TracedRowBatch(NamedTuple):
  """Rows that also tell how they came to be: as "when", int32 [B, L], which forward wrote each
  token, -1: given; or what `dlm.data.told_rows` says of them, or `Pairs`."""

  tokens_BxL: np.ndarray
  noisable_BxL: np.ndarray
  segment_BxL: np.ndarray
  position_BxL: np.ndarray
  extra: dict[str, np.ndarray]


def _positions(segment_BxL: np.ndarray) -> np.ndarray:
  """Columns counted from where each run of one segment begins in its row."""
  column_L = np.arange(segment_BxL.shape[1], dtype=np.int32)
  begins_BxL = np.diff(segment_BxL, axis=1, prepend=-1) != 0
  return column_L - np.maximum.accumulate(np.where(begins_BxL, column_L, 0), axis=1)


def check_padded(name: str, length: int, pad: str, per_row: int, too_long: str) -> None:
  """Of the arguments of `Padded`."""
  for field, value, known in (("pad", pad, PADS), ("too_long", too_long, TOO_LONG)):
    if value not in known:
      raise ValueError(f"{name}: unknown {field}={value!r}; known: {', '.join(known)}")
  if not 1 <= per_row <= length // 2:
    raise ValueError(f"{name}: {per_row=} must be within 1..{length // 2}, two columns an example")


def unfit(
  size_N: np.ndarray, prompt_N: np.ndarray, slot: int, too_long: str
) -> tuple[np.ndarray, np.ndarray]:
  """Which documents are dropped, and which are cut, where each has `slot` columns."""
  unfit_N = size_N > slot
  dropped_N = prompt_N >= slot
  if too_long == "drop":
    dropped_N = dropped_N | unfit_N
  return dropped_N, unfit_N & ~dropped_N


class Packed:
  """Documents end to end, as a ring, cut into rows of `length`.

  Each epoch cuts at another offset and visits the rows in another order; fewer than `length` tokens
  of an epoch go unseen. With `document_mask` each document is a segment of its row.
  """

  alone = False

  def __init__(self, corpus: Corpus, length: int, document_mask: bool, key: tuple[int, ...] | None):
    if not isinstance(corpus, TokenCorpus):
      raise ValueError(f"{corpus.name}: mode='pack' needs stored documents; use mode='pad'")
    total = corpus.tokens_T.size
    if total < length:
      raise ValueError(f"{corpus.name}: {total} tokens do not fill one row of {length=}")
    self._corpus, self._length, self._document_mask, self._key = corpus, length, document_mask, key
    self.epoch_rows = total // length
    self.report = {"name": corpus.name, "documents": len(corpus), "tokens": total}

  def rows(self, row_B: np.ndarray) -> RowBatch | TracedRowBatch:
    corpus, length = self._corpus, self._length
    total = corpus.tokens_T.size
    epoch_B, index_B = np.divmod(row_B, self.epoch_rows)
    offset_B = np.zeros_like(row_B)
    if self._key is not None:
      index_B = permuted(index_B, self.epoch_rows, *self._key, epoch_B)
      offset_B = (hash_words(*self._key, epoch_B, 1) % np.uint64(total)).astype(np.int64)
    at_BxL = (index_B * length + offset_B)[:, None] + np.arange(length)
    lap_BxL, at_BxL = np.divmod(at_BxL, total)
    tokens_BxL = corpus.tokens_T[at_BxL].astype(np.int32)
    document_BxL = np.searchsorted(corpus.start_N, at_BxL, side="right") - 1
    prompt_end_BxL = corpus.start_N[document_BxL] + corpus.prompt_N[document_BxL]
    if self._document_mask:
      document_BxL = document_BxL + lap_BxL * len(corpus)
      segment_BxL = (document_BxL - document_BxL[:, :1] + 1).astype(np.int32)
    else:
      segment_BxL = np.ones(at_BxL.shape, np.int32)
    noisable_BxL = at_BxL >= prompt_end_BxL
    if corpus.learned_T is not None:
      noisable_BxL = noisable_BxL & corpus.learned_T[at_BxL]
    rows = RowBatch(tokens_BxL, noisable_BxL, segment_BxL, _positions(segment_BxL))
    if not corpus.traced:
      return rows
    return TracedRowBatch(*rows, {"when": corpus.when_T[at_BxL]})


class Padded:
  """Whole examples, `per_row` in a row, each at the start of a slot of `length // per_row`.

  What follows an example in its slot is either EOS that the model learns to write (`pad="eos"`, the
  example's own segment: LLaDA's fine-tuning, arXiv 2502.09992) or padding that nobody
  sees (`pad="none"`, segment 0). Columns left over by the division are padding too. Examples that
  do not fit are cut, without EOS, or dropped; a prompt that fills the slot is always dropped.
  """

  def __init__(
    self,
    corpus: Corpus,
    tokenizer: Tokenizer,
    length: int,
    pad: str,
    per_row: int,
    too_long: str,
    key: tuple[int, ...] | None,
  ):
    name = corpus.name
    check_padded(name, length, pad, per_row, too_long)
    self._corpus, self._length, self.per_row, self._key = corpus, length, per_row, key
    self._slot = length // per_row
    self._eos_padded = pad == "eos"
    self._fill = tokenizer.eos_id if self._eos_padded else tokenizer.pad_id
    self._pad_id = tokenizer.pad_id
    self.report: dict[str, int | str] = {"name": name, "documents": len(corpus)}
    self._kept_N = None  # indices of the documents used; None: all
    if isinstance(corpus, GeneratedCorpus):
      self._check_generated(too_long)
    else:
      self._keep(too_long)
    self._count = len(corpus) if self._kept_N is None else self._kept_N.size
    self.epoch_rows = max(1, self._count // per_row)
    self.alone = per_row == 1

  def rows(self, row_B: np.ndarray) -> RowBatch | TracedRowBatch:
    slot, per_row = self._slot, self.per_row
    example_E = (row_B[:, None] * per_row + np.arange(per_row)).reshape(-1)
    index_E = self._documents(example_E)
    tokens_ExC = np.full((index_E.size, slot), self._fill, np.int32)
    learned_ExC = np.ones((index_E.size, slot), bool)
    when_ExC = np.full((index_E.size, slot), -1, np.int32)
    prompt_E, size_E = np.zeros_like(index_E), np.zeros_like(index_E)
    for e, (ids, prompt, learned, when) in enumerate(self._corpus.documents(index_E.tolist())):
      prompt_E[e], size_E[e] = prompt, min(ids.size, slot)
      tokens_ExC[e, : size_E[e]] = ids[:slot]
      if learned is not None:
        learned_ExC[e, : size_E[e]] = learned[:slot]
      if when is not None:
        when_ExC[e, : size_E[e]] = when[:slot]
    column_C = np.arange(slot)
    used_ExC = (column_C < size_E[:, None]) | self._eos_padded
    number_E = np.tile(np.arange(1, per_row + 1), row_B.size)
    segment_ExC = np.where(used_ExC, number_E[:, None], 0)
    noisable_ExC = used_ExC & learned_ExC & (column_C >= prompt_E[:, None])
    segment_BxL = self._in_rows(segment_ExC.astype(np.int32), 0)
    rows = RowBatch(
      self._in_rows(tokens_ExC, self._pad_id),
      self._in_rows(noisable_ExC, False),
      segment_BxL,
      _positions(segment_BxL),
    )
    if not self._corpus.traced:
      return rows
    return TracedRowBatch(*rows, {"when": self._in_rows(when_ExC, -1)})

  def _documents(self, example_E: np.ndarray) -> np.ndarray:
    """Which document stands at each place of the stream."""
    epoch_E, index_E = np.divmod(example_E, self._count)
    if self._key is not None:
      index_E = permuted(index_E, self._count, *self._key, epoch_E)
    return index_E if self._kept_N is None else self._kept_N[index_E]

  def _in_rows(self, values_ExC: np.ndarray, fill: int | bool) -> np.ndarray:
    """Slots side by side; the columns that the division leaves over are padding."""
    values_BxL = values_ExC.reshape(-1, self.per_row * self._slot)
    left_over = self._length - values_BxL.shape[1]
    return np.pad(values_BxL, ((0, 0), (0, left_over)), constant_values=fill)

  def _keep(self, too_long: str) -> None:
    """Settles before work starts which documents are used, and counts the others."""
    size_N = np.diff(self._corpus.start_N)
    dropped_N, cut_N = unfit(size_N, self._corpus.prompt_N, self._slot, too_long)
    if dropped_N.all():
      raise ValueError(
        f"{self._corpus.name}: no example fits {self._slot} columns (length // per_row);"
        f" the shortest has {size_N.min()} tokens"
      )
    self._kept_N = np.flatnonzero(~dropped_N)
    self.report |= {
      "dropped": int(dropped_N.sum()),
      "truncated": int(cut_N.sum()),
      "columns": self._slot,
    }

  def _check_generated(self, too_long: str) -> None:
    """Items that are made on demand cannot be counted; they must simply fit."""
    name = self._corpus.name
    if too_long == "drop":
      raise ValueError(f"{name}: too_long='drop' needs stored documents; its items must fit")
    probed = self._corpus.documents(range(min(PROBED, len(self._corpus))))
    if (size := max(document.ids_T.size for document in probed)) > self._slot:
      raise ValueError(
        f"{name}: an item has {size} tokens, more than {self._slot} columns (length // per_row)"
      )


class Pairs(Padded):
  """Two answers to a prompt in rows 2i and 2i + 1, and "advantage_B": 1 of the chosen one, else -1.

  A pair of which one answer is dropped is dropped whole.
  """

  def __init__(
    self,
    corpus: TokenCorpus,
    tokenizer: Tokenizer,
    length: int,
    pad: str,
    too_long: str,
    key: tuple[int, ...] | None,
  ):
    super().__init__(corpus, tokenizer, length, pad, 1, too_long, key)
    kept_N = np.isin(np.arange(len(corpus)), self._kept_N).reshape(-1, 2).all(1)
    if not kept_N.any():
      raise ValueError(f"{corpus.name}: no pair fits {length} columns")
    self._kept_N = np.flatnonzero(kept_N)  # of pairs
    self._count = self._kept_N.size
    self.epoch_rows = 2 * self._count
    self.report["dropped"] = 2 * int((~kept_N).sum())

  def rows(self, row_B: np.ndarray) -> TracedRowBatch:
    rows = super().rows(row_B)
    return TracedRowBatch(*rows, {"advantage_B": np.where(row_B % 2, -1, 1).astype(np.float32)})

  def _documents(self, example_E: np.ndarray) -> np.ndarray:
    return 2 * super()._documents(example_E // 2) + example_E % 2


class Stored:
  """Rows as they were written; every epoch visits each of them once, in another order.

  Memory holds no index of them, and a row is read when its step asks for it.
  """

  def __init__(self, rows: StoredRows, key: tuple[int, ...] | None):
    self._rows, self._key, self.report = rows, key, rows.report
    self.epoch_rows = len(rows)
    self.alone = rows.layout.get("mode") == "pad" and rows.layout["per_row"] == 1

  def rows(self, row_B: np.ndarray) -> RowBatch | TracedRowBatch:
    epoch_B, index_B = np.divmod(row_B, self.epoch_rows)
    if self._key is not None:
      index_B = permuted(index_B, self.epoch_rows, *self._key, epoch_B)
    tokens_BxL, noisable_BxL, segment_BxL, extra = self._rows.rows(index_B)
    rows = RowBatch(tokens_BxL, noisable_BxL, segment_BxL, _positions(segment_BxL))
    return TracedRowBatch(*rows, extra) if extra else rows
