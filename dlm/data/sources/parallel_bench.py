"""ParallelBench (2510.04767), made anew: tasks whose tokens depend on each other, in 17 families.

`parallel_bench:copy,shuffle`. The rules by which records are drawn are the authors', draw by draw
(`records`); their data and wording have no licence, so all items, names and words here are our own
and, as the rest of this project, under Apache-2.0. Graders: `dlm/evaluation/tasks/parallel_bench`.

It differs on purpose where theirs misleads: "sort" says by which name (theirs asks for last names
and sorts by first ones), and prompts say that positions count from 0. Sudokus are drawn, not taken
from a file; what the texts are about is in `short_texts.py`.
"""

import functools
import hashlib
import itertools
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dlm.data.sources import short_texts
from dlm.data.sources.example import Documents, Example, check_split, split_of
from dlm.data.sources.lists import POOLS, list_text
from dlm.data.stateless import hash_text

Record = dict[str, Any]  # input, answer, metadata, perhaps output_format
MASK = "[MASK]"  # stands for an item in "output_format"
SYMBOLS = [*string.ascii_uppercase, *string.digits]
SURNAMES = (
  "Aalto Bauer Cruz Dahl Eriksen Fox Greco Haas Ivanov Jung Klein Lopez Moreau Nagy Olsen Petrov"
  " Quist Rossi Sato Tan Urban Voss Weber Xu Yilmaz Zeman"
)
PEOPLE = tuple(
  " ".join(name) for name in itertools.product(POOLS["names"].split(), SURNAMES.split())
)
ENOUGH = 100  # records that are drawn for each that is wanted


# ---------------------------------------------------------------------------------------------
# The authors' draws. Their order matters: one stream of random numbers makes a whole file.


def seed_of(name: str, offset: int = 42) -> int:
  """Of a task's file, by the last part of its name."""
  return (int(hashlib.sha256(name.encode()).hexdigest(), 16) + offset) % (2**16 - 1)


def records(config: Mapping[str, Any]) -> list[Record]:
  """A file of the benchmark: `num_samples` records with their worked examples.

  Args:
    config: name, type, num_samples, icl_example_count, perhaps seed and samples_per_length (then
      every length gets as many), and what the type needs: words, min_length and max_length, ...

  Raises:
    ValueError: the type is unknown.
  """
  if config["type"] not in TYPES:
    raise ValueError(f"parallel_bench: unknown type={config['type']!r}; known: {', '.join(TYPES)}")
  draw = random.Random(seed_of(config["name"].rpartition("/")[2], config.get("seed", 42)))
  size, each = config["num_samples"], config.get("samples_per_length", 0)
  found = _bucketed(_stream(draw, config), size, each) if each else _first(draw, config, size)
  for _ in range(config.get("icl_example_count", 0)):
    for record, shown in zip(found, _first(draw, config, size), strict=True):
      record["input"].setdefault("icl_examples", []).append(shown)
  return found


def messages(record: Record, prompt: str) -> list[dict[str, str]]:
  """The turns that ask a record: its worked examples, then itself."""
  said = []
  for shown in record["input"].get("icl_examples", ()):
    said.append({"role": "user", "content": _asked(shown, prompt)})
    said.append({"role": "assistant", "content": _example_of(shown)})
  return [*said, {"role": "user", "content": _asked(record, prompt)}]


def _asked(record: Record, prompt: str) -> str:
  return prompt.format(**record["input"]).replace("\\n", "\n")


def _example_of(record: Record) -> str:
  answer = record["answer"]
  return answer if isinstance(answer, str) else answer["example"]


def _stream(draw: random.Random, config: Mapping[str, Any]) -> Iterator[Record]:
  while True:
    yield TYPES[config["type"]](draw, config)


def _first(draw: random.Random, config: Mapping[str, Any], size: int) -> list[Record]:
  return [*itertools.islice(_stream(draw, config), size)]


def _bucketed(stream: Iterator[Record], size: int, each: int) -> list[Record]:
  """The lengths of which there are `each` first, in order of length."""
  buckets: dict[int, list[Record]] = {}
  full = 0
  while full < size // each:
    record = next(stream)
    length = record["metadata"].get("count", record["metadata"]["length"])
    bucket = buckets.setdefault(length, [])
    if len(bucket) < each:
      bucket.append(record)
      full += len(bucket) == each
  return [
    record
    for length in sorted(buckets)
    if len(buckets[length]) == each
    for record in buckets[length]
  ]


def _items(draw: random.Random, config: Mapping[str, Any]) -> list[str]:
  return draw.sample(config["words"], _length(draw, config))


def _length(draw: random.Random, config: Mapping[str, Any]) -> int:
  if config.get("lengths"):
    return draw.choice(config["lengths"])
  return draw.randint(config["min_length"], config["max_length"])


def _record(given: Record, answer: Any, length: int, masked: int = 0, **metadata: Any) -> Record:
  record = {"input": given, "answer": answer, "metadata": {"length": length, **metadata}}
  return record | ({"output_format": list_text([MASK] * masked)} if masked else {})


def _copy(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items = _items(draw, config)
  return _record({"context": list_text(items)}, list_text(items), len(items), len(items))


def _reverse(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items = _items(draw, config)
  return _record({"context": list_text(items)}, list_text(items[::-1]), len(items))


def _sort(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items = _items(draw, config)
  return _record({"context": list_text(items)}, list_text(sorted(items)), len(items))


def _shuffle(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items = _items(draw, config)
  other = [*items]
  while other == items:
    draw.shuffle(other)
  answer = {"input": items, "example": list_text(other)}
  return _record({"context": list_text(items)}, answer, len(items), len(items))


def _insert(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items, word = _items_and_word(draw, config)
  index = draw.randint(0, len(items))
  return _changed(items, [*items[:index], word, *items[index:]], config, index, word)


def _replace(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items, word = _items_and_word(draw, config)
  index = draw.randint(0, len(items) - 1)
  return _changed(items, [*items[:index], word, *items[index + 1 :]], config, index, word)


def _remove(draw: random.Random, config: Mapping[str, Any]) -> Record:
  items = _items(draw, config)
  index = draw.randint(0, len(items) - 1)
  return _changed(items, items[:index] + items[index + 1 :], config, index, None)


def _items_and_word(draw: random.Random, config: Mapping[str, Any]) -> tuple[list[str], str]:
  items = _items(draw, config)
  return items, draw.choice([word for word in config["words"] if word not in items])


def _changed(
  items: list[str], new: list[str], config: Mapping[str, Any], index: int, word: str | None
) -> Record:
  """The index is told, or anyone will do."""
  named = {} if word is None else {"word": word}
  given, answer = {"context": list_text(items), **named}, list_text(new)
  if config["random_index"]:
    answer = {"input": items, **named, "example": answer}
  else:
    given["index"] = index
  told = None if config["random_index"] else index
  masked = 0 if word is None else len(new)
  return _record(given, answer, len(items), masked, index=told, **named)


def _repeat(draw: random.Random, config: Mapping[str, Any]) -> Record:
  count = draw.choice(config["repeat_counts"])
  items = draw.sample(
    config["words"], draw.randint(config["min_length"], config["max_length"] // count)
  )
  each = config["repeat_type"] == "each"
  repeated = [item for item in items for _ in range(count)] if each else items * count
  given = {"context": list_text(items), "count": count}
  return _record(given, list_text(repeated), len(items), count=count)


def _domino(draw: random.Random, config: Mapping[str, Any]) -> Record:
  length = _length(draw, config)
  chain = [10 * draw.randint(1, 9) + draw.randint(1, 9)]
  while len(chain) < length:
    chain.append(10 * (chain[-1] % 10) + draw.randint(1, 9))
  given = {"length": length, "start": chain[0]}
  return _record(given, {**given, "example": list_text(map(str, chain))}, length)


def _math_op(draw: random.Random, config: Mapping[str, Any]) -> Record:
  """A chain of operations, each on the result of the one before and a new number."""
  digits = _length(draw, config)
  operations = [draw.choice(config.get("ops") or "+-*") for _ in range(config["num_ops"] - 1)]
  text, value = "", None
  for sign in reversed(operations):
    if value is None:
      value = _number(draw, digits // 2 if sign == "*" else digits - 1)
      text = str(value)
    size = max(digits - len(str(abs(value))), 1) if sign == "*" else digits - 1
    other = _number(draw, size)
    text = f"({text} {sign} {other})"
    value = {"+": value + other, "-": value - other, "*": value * other}[sign]
  equation = f"{text[1:-1]} = ?"
  return _record(
    {"equation": equation}, {"result": str(value)}, digits, true_length=len(str(value))
  )


def _number(draw: random.Random, digits: int) -> int:
  return int("".join(str(draw.randint(i == 0, 9)) for i in range(digits)))


def _running_sums(draw: random.Random, config: Mapping[str, Any]) -> Record:
  numbers = draw.choices(range(1, 10), k=_length(draw, config))
  given, answer = (_plain(each) for each in (numbers, itertools.accumulate(numbers)))
  return _record({"list": given}, answer, len(numbers))


def _latin_square(draw: random.Random, config: Mapping[str, Any]) -> Record:
  """Rows and columns of a cyclic square, shuffled."""
  size = config["size"]
  symbols = draw.sample(SYMBOLS, size)
  rows = [symbols[i:] + symbols[:i] for i in range(size)]
  draw.shuffle(rows)
  columns = [*zip(*rows, strict=True)]
  draw.shuffle(columns)
  example = "\n".join(",".join(row) for row in zip(*columns, strict=True))
  given = {"size": size, "symbols": _plain(symbols)}
  return _record(given, {"symbols": symbols, "example": example}, size)


def _plain(items: Sequence[Any]) -> str:
  return list_text(map(str, items)).replace('"', "")


# ---------------------------------------------------------------------------------------------
# Ours alone


def _sudoku(draw: random.Random, config: Mapping[str, Any]) -> Record:
  """A 4x4 grid with `givens` digits, which one solution alone fits."""
  grids = _grids()
  while True:
    grid = draw.choice(grids)
    kept = set(draw.sample(range(16), config["givens"]))
    if sum(all(other[i] == grid[i] for i in kept) for other in grids) == 1:
      break
  asked = "".join(digit if i in kept else "0" for i, digit in enumerate(grid))
  return _record({"sudoku": _in_rows(asked)}, _in_rows(grid), 4)


@functools.cache
def _grids() -> tuple[str, ...]:
  """All 288 of them: no digit twice in a row, a column or a box."""
  rows = ["".join(row) for row in itertools.permutations("1234")]
  found = []
  for top in itertools.product(rows, repeat=2):
    if len({*top[0][:2], *top[1][:2]}) == 4 and len({*top[0][2:], *top[1][2:]}) == 4:
      for low in itertools.product(rows, repeat=2):
        boxes = len({*low[0][:2], *low[1][:2]}) == 4
        if boxes and all(len(set(column)) == 4 for column in zip(*top, *low, strict=True)):
          found.append("".join(top + low))
  return tuple(found)


def _in_rows(grid: str) -> str:
  return "\n".join(grid[i : i + 4] for i in range(0, 16, 4))


TYPES: dict[str, Callable[[random.Random, Mapping[str, Any]], Record]] = {
  "copy": _copy,
  "reverse": _reverse,
  "sort": _sort,
  "shuffle": _shuffle,
  "insert": _insert,
  "remove": _remove,
  "replace": _replace,
  "latin_square": _latin_square,
  "sudoku": _sudoku,
  "repeat": _repeat,
  "domino": _domino,
  "math_op": _math_op,
  "rec_cumsum": _running_sums,
  "words_to_sentence": short_texts.words_to_sentence,
  "paraphrase": short_texts.paraphrase,
  "summary": short_texts.summary,
}

QUEUE = "These people wait in line, first in line first: {context}\\n"
LIST_ONLY = "\\nAnswer with the new list alone, written in the same way."


def _queue(type: str, asked: str, **config: Any) -> tuple[Record, str]:
  lengths = {"words": PEOPLE, "min_length": 3, "max_length": 6}
  return {"type": type, **lengths, **config}, QUEUE + asked + LIST_ONLY


def _sentence(difficulty: str) -> tuple[Record, str]:
  asked = "Write one sentence that holds each of these words: {words}\\nAnswer with it alone."
  return {"type": "words_to_sentence", "difficulty": difficulty, "count": 4}, asked


# Task -> how it is drawn, how it is asked. The first 17 are the benchmark; PBx is their mean.
TASKS: dict[str, tuple[Record, str]] = {
  "copy": _queue("copy", "Nothing changes."),
  "reverse": _queue("reverse", "The line turns round: the last one is now the first."),
  "sort": _queue("sort", "They line up in the order of the alphabet, by first name, then surname."),
  "shuffle": _queue("shuffle", "They line up in any other order than this one."),
  "insert_index": _queue(
    "insert", "{word} joins at position {index}, counted from 0.", random_index=False
  ),
  "insert_random": _queue("insert", "{word} joins at any place.", random_index=True),
  "remove_index": _queue(
    "remove", "Who stands at position {index}, counted from 0, leaves.", random_index=False
  ),
  "remove_random": _queue("remove", "Any one of them leaves.", random_index=True),
  "replace_index": _queue(
    "replace",
    "{word} takes the place of who stands at position {index}, counted from 0.",
    random_index=False,
  ),
  "replace_random": _queue(
    "replace", "{word} takes the place of any one of them.", random_index=True
  ),
  "latin_square_n4": (
    {"type": "latin_square", "size": 4},
    "Fill a square of {size} rows and {size} columns with the symbols {symbols}, so that each"
    " stands once in every row and once in every column.\\nAnswer with the rows alone, one a line,"
    " with commas between the symbols.",
  ),
  "sudoku_n4_12": (
    {"type": "sudoku", "givens": 12},
    "In this grid 0 is an empty cell:\\n{sudoku}\\nFill it so that every row, every column and"
    " every 2x2 box holds 1, 2, 3 and 4.\\nAnswer with the four rows alone.",
  ),
  "words_to_sentence_easy": _sentence("easy"),
  "words_to_sentence_medium": _sentence("medium"),
  "words_to_sentence_hard": _sentence("hard"),
  "paraphrase": (
    {"type": "paraphrase"},
    "Say this in other words, without losing or adding anything: {text}\\nAnswer with it alone.",
  ),
  "summary": (
    {"type": "summary"},
    "{text}\\n\\nWhat did the two agree on? Answer with one sentence alone.",
  ),
  # Generators of the authors' that are not among the 17.
  "repeat_each": _queue(
    "repeat",
    "Each of them is told {count} times in a row.",
    min_length=1, max_length=8, repeat_counts=(2, 3), repeat_type="each",
  ),
  "repeat_list": _queue(
    "repeat",
    "The whole line is told {count} times.",
    min_length=1, max_length=8, repeat_counts=(2, 3), repeat_type="list",
  ),
  "domino": (
    {"type": "domino", "min_length": 3, "max_length": 6},
    "Write {length} numbers of two digits, without zeros, the first of them {start}; each begins"
    ' with the digit that ends the one before.\\nAnswer as ["12", "23"] alone.',
  ),
  "math_op": (
    {"type": "math_op", "lengths": (3, 4), "num_ops": 3},
    "{equation}\\nAnswer with the number alone.",
  ),
  "running_sums": (
    {"type": "rec_cumsum", "lengths": (4, 5, 6)},
    "Replace each number by the sum of it and all before it: {list}\\nAnswer with the new list"
    " alone, written in the same way.",
  ),
}  # fmt: skip
BENCHMARK = tuple(TASKS)[:17]


def read_parallel_bench(
  names: str, split: str, seed: int, *, size: int = 100, items: tuple[int, int] | None = None
) -> Documents:
  """`size` records of each task, fewer if it has no more, of all lengths alike.

  No question is in both splits.

  Args:
    names: of tasks, with commas between them; "all" are the benchmark's 17.
    items: the least and the greatest length of lists; the paper's second set has (15, 15).

  Raises:
    ValueError: a task is unknown, or has no such lengths.
  """
  check_split(split)
  if type(size) is not int or size < 1:
    raise ValueError(f"parallel_bench: {size=} must be a whole number of at least 1")
  examples: list[Example] = []
  for name in BENCHMARK if names == "all" else names.split(","):
    if name not in TASKS:
      raise ValueError(f"parallel_bench: unknown task {name!r}; known: all, {', '.join(TASKS)}")
    config, asked = TASKS[name]
    if items is not None:
      if "words" not in config:
        raise ValueError(f"parallel_bench: {items=} is for lists, and {name} has none")
      low, high = items
      if not 2 <= low <= high <= 99:
        raise ValueError(f"parallel_bench: {items=} must be a range within 2..99")
      config = config | {"min_length": low, "max_length": high}
    examples += _drawn(name, config, asked, split, seed, size)
  return Documents(f"parallel_bench:{names}", tuple(examples))


def _drawn(
  task: str, config: Record, asked: str, split: str, seed: int, size: int
) -> list[Example]:
  draw = random.Random(hash_text(f"parallel_bench {task} {seed}"))
  longest = config.get("max_length", 1) // min(config.get("repeat_counts", (1,)))
  kinds = longest - config.get("min_length", 1) + 1
  each = -(-size // kinds)
  buckets: dict[int, dict[str, Example]] = {}
  for record in itertools.islice(_stream(draw, config), ENOUGH * (size + 10)):
    prompt = _asked(record, asked)
    bucket = buckets.setdefault(record["metadata"]["length"], {})
    if len(bucket) < each and split_of(f"parallel_bench {prompt}") == split:
      answer = record["answer"]
      completion = answer["result"] if config["type"] == "math_op" else _example_of(record)
      meta = {"task": task, "type": config["type"], "answer": answer}
      bucket.setdefault(prompt, Example(f"{prompt}\n", completion, meta))
    if sum(map(len, buckets.values())) == each * kinds:
      break
  by_turns = itertools.zip_longest(*(buckets[length].values() for length in sorted(buckets)))
  return [example for turn in by_turns for example in turn if example is not None][:size]
