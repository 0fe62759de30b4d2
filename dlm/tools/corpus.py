"""A search engine in memory: BM25 over the documents of a JSONL file, by the package bm25s."""

import hashlib
import logging
import pathlib
from typing import NamedTuple

from dlm.data import lines


class Document(NamedTuple):
  name: str
  text: str

  def __str__(self) -> str:
    return f"{self.name}: {self.text}"


class Corpus:
  """Documents, and the two tools over them: `search` and `open`.

  A line is {"title": "...", "text": "..."}; a document without a title is named by its number.

  Raises:
    ValueError: names the line that is no document, or the file that holds none.
  """

  def __init__(self, paths: str | pathlib.Path, hits: int = 3):
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of each index
    if hits < 1:
      raise ValueError(f"Corpus: hits={hits} must be at least 1")
    self._documents: list[Document] = []
    for line in lines.read(paths):
      fields = line.value if isinstance(line.value, dict) else {}
      title = fields.get("title", str(len(self._documents) + 1))
      if not (isinstance(title, str) and isinstance(fields.get("text"), str)):
        raise ValueError(f'{line.where}: needs {{"title": "...", "text": "..."}}')
      self._documents.append(Document(title, fields["text"]))
    if not self._documents:
      raise ValueError(f"{paths} holds no document")
    self._by_name = {each.name: each for each in reversed(self._documents)}
    self._tokenize = lambda text: bm25s.tokenize(text, stopwords=None, show_progress=False)
    self._index = bm25s.BM25()
    self._index.index(self._tokenize([str(each) for each in self._documents]), show_progress=False)
    self._hits = min(hits, len(self._documents))

  def __len__(self) -> int:
    return len(self._documents)

  @property
  def digest(self) -> str:
    """Equal for equal documents in equal order."""
    return hashlib.sha256(repr(self._documents).encode("utf-8", "surrogatepass")).hexdigest()

  def search(self, query: str) -> str:
    """The documents that match best, best first, a line each; those of no common word are none."""
    found, scores = self._index.retrieve(
      self._tokenize(query), k=self._hits, show_progress=False, backend_selection="numpy"
    )
    hits = [str(self._documents[i]) for i, score in zip(found[0], scores[0], strict=True) if score]
    return "\n".join(hits) or "nothing found"

  def open(self, title: str) -> str:
    """The text of a document."""
    if title not in self._by_name:
      raise ValueError(f"there is no document {title!r}")
    return self._by_name[title].text
