"""JSON lines: {"text": ...}, or {"prompt": ..., "completion": ...} ("response" is as good)."""

import json
import pathlib

from dlm.data.sources.example import Documents, Example, check_split, split_of


def read_jsonl(path: str, split: str) -> Documents:
  """Reads the file into memory. A `{split}` in the path names one file per split; in a single file
  a line's number decides its split, so that lines appended later move no other line.
  """
  check_split(split)
  separate = "{split}" in path
  found_path = pathlib.Path(path.replace("{split}", split))
  if not found_path.is_file():
    raise ValueError(f"jsonl: no file at {found_path}")
  examples = []
  with found_path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      if line.strip() and (separate or split_of(f"line {number}") == split):
        examples.append(_example(line, f"{found_path}:{number}"))
  return Documents("jsonl", tuple(examples), (str(found_path),))


def _example(line: str, where: str) -> Example:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: not JSON: {error}") from None
  if not isinstance(record, dict):
    raise ValueError(f"{where}: a line must be an object, not {type(record).__name__}")
  completion = record.get("completion", record.get("response"))
  if "text" in record and "prompt" not in record:
    prompt, completion = "", record["text"]
  else:
    prompt = record.get("prompt")
  if not isinstance(prompt, str) or not isinstance(completion, str):
    raise ValueError(
      f'{where}: needs "text", or "prompt" with "completion" or "response", as strings;'
      f" has {sorted(record)}"
    )
  return Example(prompt, completion)
