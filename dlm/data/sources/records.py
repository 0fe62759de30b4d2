"""Records of files: {"text": ...}, or {"prompt": ..., "completion": ...}, also named "response".

Or a conversation, {"messages": [{"role": ..., "content": ...}, ...]}, with "tools" and
"chat_template_kwargs" if its template takes any: see `dlm.data.chat`.
"""

import pathlib
from collections.abc import Callable, Iterator

from dlm.data import lines
from dlm.data.chat import Conversation
from dlm.data.install import require
from dlm.data.lines import Line
from dlm.data.sources.example import Documents, Example, check_split, split_of

FIELDS = (
  "text", "prompt", "completion", "response", "messages", "tools", "chat_template_kwargs",
)  # fmt: skip
AT_ONCE = 1024  # rows of a Parquet file


def read_jsonl(paths: str, split: str) -> Documents:
  """JSON lines, read into memory; `paths` as `dlm.data.lines.found` takes them.

  A `{split}` in the paths names files per split; else a line's number decides its split, so that
  lines appended later move no other line.
  """
  return _documents("jsonl", paths, split, lines.read_file)


def read_parquet(paths: str, split: str) -> Documents:
  """Rows of Parquet files, as `read_jsonl` reads lines: the columns are the fields."""
  return _documents("parquet", paths, split, _rows)


def _rows(path: pathlib.Path) -> Iterator[Line]:
  library = require("pyarrow.parquet")
  number = 0
  try:
    with library.ParquetFile(path) as file:
      known = [name for name in FIELDS if name in file.schema_arrow.names]
      for batch in file.iter_batches(AT_ONCE, columns=known):
        for row in batch.to_pylist():
          number += 1
          yield Line(path, number, row)
  except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
    raise ValueError(f"{path} cannot be read after row {number}: {error}") from error


def _documents(
  name: str, paths: str, split: str, read: Callable[[pathlib.Path], Iterator[Line]]
) -> Documents:
  check_split(split)
  separate = "{split}" in paths
  found = lines.found(paths.replace("{split}", split))
  examples = []
  for path in found:
    for line in read(path):
      key = f"line {line.number}" if len(found) == 1 else f"{path.name} line {line.number}"
      if separate or split_of(key) == split:
        examples.append(_example(line))
  return Documents(name, tuple(examples), tuple(map(str, found)))


def _example(line: Line) -> Example:
  if not isinstance(line.value, dict):
    raise ValueError(f"{line.where}: must be an object, not {type(line.value).__name__}")
  record = {field: value for field, value in line.value.items() if value is not None}
  if "messages" in record:
    talk = Conversation.of(record, line.where)
    said = "\n".join(str(message["content"]) for message in talk.messages)
    return Example("", said, talk=talk)
  completion = record.get("completion", record.get("response"))
  if "text" in record and "prompt" not in record:
    prompt, completion = "", record["text"]
  else:
    prompt = record.get("prompt")
  if not isinstance(prompt, str) or not isinstance(completion, str):
    raise ValueError(
      f'{line.where}: needs "text", or "prompt" with "completion" or "response", as strings,'
      f' or "messages"; has {sorted(record)}'
    )
  return Example(prompt, completion)
