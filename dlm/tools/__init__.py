"""What a model may call while it writes, by name: functions of texts that give a text.

calls   a text becomes a call, which runs in a thread of its own
corpus  the tools that are here without a network: BM25 over a file, and its documents
"""

from collections.abc import Sequence

from dlm import named
from dlm.tools.calls import Call, Tool, Tools
from dlm.tools.corpus import Corpus

__all__ = ["OF_CORPUS", "Call", "Corpus", "Tool", "Tools", "open_tools"]

OF_CORPUS = ("search", "open")  # methods of `Corpus`


def open_tools(
  names: Sequence[str], corpus: str = "", *, hits: int = 3, seconds: float = 20.0
) -> Tools:
  """Tools by name: of `OF_CORPUS`, or "package.module:function", which is called by its own name.

  Args:
    names: the first is called by a text that is no JSON.
    corpus: a JSONL file of documents, for those that look into one.
    hits: documents that a search finds.
    seconds: a call may take.

  Raises:
    ValueError: there is none of a name; names the known ones. Or the corpus is not there, or no
      tool looks into it.
  """
  of_corpus = [name for name in names if name in OF_CORPUS]
  if bool(of_corpus) != bool(corpus):
    used = f"which {' and '.join(of_corpus)} need" if of_corpus else "which no tool looks into"
    raise ValueError(f"tools.corpus={corpus!r}: a JSONL file of documents, {used}")
  documents = Corpus(corpus, hits) if corpus else None
  found: dict[str, Tool] = {}
  for name in names:
    short = name.rpartition(":")[2]
    if short in found:
      raise ValueError(f"tools.of={tuple(names)} names {short!r} twice")
    if name in OF_CORPUS:
      found[short] = getattr(documents, name)
    else:
      found[short] = named.function("tools.of", name, OF_CORPUS)
  return Tools(found, seconds, "" if documents is None else documents.digest)
