"""Writes a tokenised source to a folder that training memory-maps.

    DIR/meta.json             source, tokenizer fingerprint, documents and tokens of each split
    DIR/tokenizer/            loads with `saved:DIR/tokenizer`
    DIR/SPLIT/tokens.npy      uint16 (uint32 for 65536 ids or more), documents end to end
    DIR/SPLIT/start.npy       int64, where each document starts, and the end
    DIR/SPLIT/prompt.npy      int32, how many of its tokens are the prompt
The folder appears under its name only when it is complete.
"""

import pathlib
import sys
from collections.abc import Callable, Iterable

import numpy as np

from dlm import files
from dlm.data.corpus import META, encoded
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
  **options,
) -> dict:
  """Writes both splits of a source; the content of meta.json."""
  with files.appearing(out) as folder:
    sources = {split: open_source(spec, split, seed=seed, **options) for split in SPLITS}
    splits = {}
    for split, source in sources.items():
      documents = progress(encoded(source, tokenizer), len(source), split)
      (folder / split).mkdir()
      splits[split] = _write_split(folder / split, documents, tokenizer.vocab_size)
    tokenizer.save(folder / "tokenizer")
    meta = {"source": spec, "fingerprint": tokenizer.fingerprint, "splits": splits}
    files.write_json(folder / META, meta)
  return meta


def _write_split(folder: pathlib.Path, documents: Iterable, vocab_size: int) -> dict[str, int]:
  dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
  starts, prompts = [0], []
  with (folder / "tokens.npy").open("wb") as file:
    _write_header(file, dtype, 0)
    for ids, prompt in documents:
      file.write(ids.astype(dtype).tobytes())
      starts.append(starts[-1] + ids.size)
      prompts.append(prompt)
    file.seek(0)
    _write_header(file, dtype, starts[-1])
  np.save(folder / "start.npy", np.asarray(starts, np.int64))
  np.save(folder / "prompt.npy", np.asarray(prompts, np.int32))
  return {"documents": len(prompts), "tokens": starts[-1]}


def _write_header(file, dtype: np.dtype, count: int) -> None:
  """numpy leaves room for the first axis to grow, so the final header fits over the first."""
  header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
  np.lib.format.write_array_header_1_0(file, header)
