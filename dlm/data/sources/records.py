"""Records of files: {"text": ...}, or {"prompt": ..., "completion": ...}, also named "response".

Or a conversation, {"messages": [{"role": ..., "content": ...}, ...]}, with "tools" and
"chat_template_kwargs" if its template takes any: see `dlm.data.chat`.
"""

import pathlib

from dlm.data import lines, tables
from dlm.data.chat import Conversation
from dlm.data.lines import Line
from dlm.data.sources.example import Documents, Example, check_split, split_of


def read_jsonl(paths: str, split: str) -> Documents:
  """JSON lines, read into memory; `paths` as `dlm.data.lines.found` takes them.

  A `{split}` in the paths names files per split; else a line's number decides its split, so that
  lines appended later move no other line.
  """
  return _documents("jsonl", paths, split)


def read_parquet(paths: str, split: str) -> Documents:
  """Rows of Parquet files, as `read_jsonl` reads lines: the columns are the fields."""
  return _documents("parquet", paths, split)


def read_dataset(paths: str, split: str) -> Documents:
  """Rows of folders that Hugging Face's `save_to_disk` wrote, as `read_parquet`.

  Of a folder with splits of its own it reads `train`, and as held out `test`, else `validation`; if
  it has none of these two, rows of `train` are held out.
  """
  check_split(split)
  folder = pathlib.Path(paths)
  names = tables.splits(folder) if tables.is_dataset(folder) else None
  if names is None:
    return _documents("dataset", paths, split)
  held_out = next((name for name in ("test", "validation") if name in names), None)
  if "train" not in names:
    raise ValueError(f"{folder} holds the splits {', '.join(names)}: name one, as {folder}/NAME")
  own = "train" if split == "train" or held_out is None else held_out
  return _documents("dataset", str(folder / own), split, whole=held_out is not None)


def _documents(kind: str, paths: str, split: str, whole: bool = False) -> Documents:
  """`whole`: all of the files is of this split."""
  check_split(split)
  whole = whole or "{split}" in paths
  found = lines.found(paths.replace("{split}", split))
  examples = []
  for path in found:
    for line in lines.READERS[kind](path):
      key = f"line {line.number}" if len(found) == 1 else f"{path.name} line {line.number}"
      if whole or split_of(key) == split:
        examples.append(_example(line))
  read = [part for path in found for part in (tables.parts(path) if path.is_dir() else [path])]
  return Documents(kind, tuple(examples), tuple(map(str, read)))


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
