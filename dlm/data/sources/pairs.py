"""Two answers to a prompt, of which one is preferred: {"prompt", "chosen", "rejected"}, texts."""

from dlm.data import lines
from dlm.data.sources.example import Documents, Example, check_split, split_of

FIELDS = ("prompt", "chosen", "rejected")


def read_pairs(paths: str, split: str) -> Documents:
  """JSON lines, read into memory: documents 2i and 2i + 1 are the i-th pair, the chosen first.

  A line's number decides its split, as of jsonl:PATH.

  Raises:
    ValueError: names the line that is no pair, or says that no line falls into the split.
  """
  check_split(split)
  examples = []
  for line in lines.read(paths, "jsonl"):
    if split_of(f"line {line.number}") != split:
      continue
    record = line.value if isinstance(line.value, dict) else {}
    for field in FIELDS:
      if not isinstance(record.get(field), str):
        raise ValueError(f"{line.where}: needs {field}, a text; has {sorted(record)}")
    prompt, *answers = (record[field] for field in FIELDS)
    examples += [Example(prompt, answer) for answer in answers]
  if not examples:
    raise ValueError(f"source 'pairs:{paths}' is empty: no pair falls into {split=}")
  return Documents("pairs", tuple(examples), tuple(map(str, lines.found(paths))))
