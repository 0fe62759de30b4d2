"""Graders of the list tasks (`dlm/data/sources/lists.py`): what counts as a right answer.

The rules are those of ParallelBench (arXiv 2510.04767; evaluation.md 1.4). `items` is the given
list, `word` the item to insert or to put in place of another; None: any will do.
"""

from collections.abc import Sequence

BLANK = "."  # fills the unused fields of the grid


def list_match(found: list[str], answer: Sequence[str]) -> bool:
  return found == list(answer)


def list_shuffle(found: list[str], items: Sequence[str]) -> bool:
  """Any order but the given one."""
  return sorted(found) == sorted(items) and found != list(items)


def random_insert(found: list[str], items: Sequence[str], word: str | None) -> bool:
  if word is None:
    return random_remove(list(items), found)
  if word not in found:
    return False
  at = found.index(word)
  return found[:at] + found[at + 1 :] == list(items)


def random_remove(found: list[str], items: Sequence[str]) -> bool:
  gone = set(items) - set(found)
  if len(found) != len(items) - 1 or len(gone) != 1:
    return False
  rest = list(items)
  rest.remove(gone.pop())
  return found == rest


def random_replace(found: list[str], items: Sequence[str], word: str | None) -> bool:
  if len(found) != len(items):
    return False
  if word is None:
    return sum(a != b for a, b in zip(found, items, strict=True)) == 1
  if word not in found:
    return False
  at = found.index(word)
  return found == [*items[:at], word, *items[at + 1 :]]


def grade(example, text: str, strict: bool = False) -> float:
  """1.0 if `text` answers an `Example` of the lists source, else 0.0. Strict: in its exact form."""
  meta = example.meta
  if meta["form"] == "words":
    found = parse_list(text, strict)
  else:
    found = parse_grid(text, example.completion, strict)
  if found is None:
    return 0.0
  items, word = meta["items"], meta["word"]
  right = {
    "shuffle": lambda: list_shuffle(found, items),
    "insert_random": lambda: random_insert(found, items, word),
    "remove_random": lambda: random_remove(found, items),
    "replace_random": lambda: random_replace(found, items, word),
  }.get(meta["task"], lambda: list_match(found, meta["answer"]))
  return float(right())


def parse_list(text: str, strict: bool = False) -> list[str] | None:
  """The list that a text holds, None if it breaks the strict form.

  Lenient: what stands between the last "[" and the first "]" after it (either may be missing), cut
  at commas, blanks dropped, quotes stripped. Strict: both brackets, ", " between quoted items.
  """
  _, opened, inner = text.rpartition("[") if "[" in text else ("", "", text)
  inner, closed, _ = inner.partition("]")
  if not strict:
    parts = [part.strip(' "') for part in inner.split(",") if part.strip()]
    return parts
  parts = inner.split(", ")
  quoted = all(len(p) >= 2 and p[0] == p[-1] == '"' and '"' not in p[1:-1] for p in parts)
  return [part[1:-1] for part in parts] if opened and closed and quoted else None


def parse_grid(text: str, like: str, strict: bool = False) -> list[str] | None:
  """The items of a grid answer without its blanks.

  Lenient: cut at white space, first line only. Strict: every field at the column it has in `like`,
  the reference answer, with nothing behind it, and blanks only at the end.
  """
  fields = text.strip().partition("\n")[0].split()
  if strict and (text != " ".join(fields) or [*map(len, fields)] != [*map(len, like.split())]):
    return None
  blank = [set(field) == {BLANK} for field in fields]
  if strict and blank != sorted(blank):
    return None
  return [field for field, is_blank in zip(fields, blank, strict=True) if not is_blank]
