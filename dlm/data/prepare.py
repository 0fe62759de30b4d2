"""Writes a tokenised source to a folder that training memory-maps.

    DIR/meta.json             source, tokenizer fingerprint, documents and tokens of each split
    DIR/tokenizer/            loads with `saved:DIR/tokenizer`
    DIR/SPLIT/tokens.npy      uint16 (uint32 for 65536 ids or more), documents end to end
    DIR/SPLIT/start.npy       int64, where each document starts, and the end
    DIR/SPLIT/prompt.npy      int32, how many of its tokens are the prompt
    DIR/SPLIT/learned.npy     bool by token, where conversations are among them
The folder appears under its name only when it is complete.
"""

import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Self

import numpy as np

from dlm import files
from dlm.data.corpus import LEARNED, META, Document, Encoder, encoded, learned
from dlm.data.install import require
from dlm.data.sources import SPLITS, open_source
from dlm.data.tokenizers import Tokenizer

# Wraps an iterable, given its length and a label; shows how far it has come.
Progress = Callable[[Iterable, int, str], Iterable]


def silent(documents: Iterable, total: int, label: str) -> Iterable:
  del total, label
  return documents


def on_stderr(documents: Iterable, total: int, label: str) -> Iterable:
  """A bar on a terminal, ten plain lines in a log."""
  if sys.stderr.isatty():
    yield from require("rich.progress").track(documents, label, total)
    return
  for done, document in enumerate(documents, 1):
    yield document
    if done * 10 // total > (done - 1) * 10 // total:
      print(f"{label}: {done} of {total} documents", file=sys.stderr)


def write_tokens(
  out: str,
  spec: str,
  tokenizer: Tokenizer,
  *,
  seed: int = 0,
  progress: Progress = silent,
  parse_specials: bool = False,
  **options,
) -> dict:
  """Writes both splits of a source; the content of meta.json.

  `parse_specials`: see `dlm.data.corpus.Encoder`.
  """
  with files.appearing(out) as folder:
    sources = {split: open_source(spec, split, seed=seed, **options) for split in SPLITS}
    splits, encoder = {}, Encoder(tokenizer, parse_specials)
    for split, source in sources.items():
      documents = progress(encoded(source, encoder), len(source), split)
      (folder / split).mkdir()
      splits[split] = _write_split(folder / split, documents, tokenizer.vocab_size)
    tokenizer.save(folder / "tokenizer")
    meta = {"source": spec, "fingerprint": tokenizer.fingerprint, "splits": splits}
    meta["notes"] = encoder.notes(spec)
    files.write_json(folder / META, meta)
  return meta


def _write_split(
  folder: pathlib.Path, documents: Iterable[Document], vocab_size: int
) -> dict[str, int]:
  dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
  starts, prompts, in_turns = [0], [], False
  with _Array(folder / "tokens.npy", dtype) as tokens, _Array(folder / LEARNED, bool) as flags:
    for document in documents:
      tokens.add(document.ids_T)
      flags.add(learned(document))
      in_turns |= document.learned_T is not None
      starts.append(starts[-1] + document.ids_T.size)
      prompts.append(document.prompt)
  if not in_turns:  # the prompts say it all
    (folder / LEARNED).unlink()
  np.save(folder / "start.npy", np.asarray(starts, np.int64))
  np.save(folder / "prompt.npy", np.asarray(prompts, np.int32))
  return {"documents": len(prompts), "tokens": starts[-1]}


class _Array:
  """A .npy file that grows. numpy leaves room for the first axis, so the header fits again."""

  def __init__(self, path: pathlib.Path, dtype: np.dtype | type):
    self._path, self._dtype, self._count = path, np.dtype(dtype), 0

  def __enter__(self) -> Self:
    self._file = self._path.open("wb")
    self._write_header()
    return self

  def add(self, values: np.ndarray) -> None:
    self._file.write(values.astype(self._dtype).tobytes())
    self._count += values.size

  def __exit__(self, *_) -> None:
    self._file.seek(0)
    self._write_header()
    self._file.close()

  def _write_header(self) -> None:
    header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
    np.lib.format.write_array_header_1_0(self._file, header)
