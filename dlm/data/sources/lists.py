"""List manipulation: tasks whose answer is known, some of them with many right answers.

The ten tasks of ParallelBench's waiting line (arXiv 2510.04767), in our wording and with our words.
In the "random" tasks the tokens of the answer depend on each other: whoever commits them in
parallel errs, and how often can be computed. Graders: `dlm/evaluation/tasks/lists.py`.

Form "grid" has every field at a fixed column and one width for all items, for tiny models on bytes:
    rev ab cd ef .. = ef cd ab ..
Fields: task code; if some task needs them, a digit for the index and the word (dots where there is
none); the items, then the answer, filled up with dots. Form "words" is prose with JSON-like lists.
"""

import dataclasses
import functools
import random
import string

from dlm.data.sources.example import Example, check_split, digest, split_of
from dlm.data.stateless import hash_text

# Task -> its code in the grid, its wording in prose. Positions count from 0.
TASKS = {
  "copy": ("cpy", "Copy the list"),
  "reverse": ("rev", "Reverse the list"),
  "sort": ("srt", "Sort the list from A to Z"),
  "shuffle": ("shf", "Put the list in any other order"),
  "insert_index": ("ini", 'Insert "{word}" at position {index}, counted from 0'),
  "remove_index": ("rmi", "Remove the item at position {index}, counted from 0"),
  "replace_index": ("rpi", 'Put "{word}" in place of the item at position {index}, counted from 0'),
  "insert_random": ("inr", 'Insert "{word}" anywhere'),
  "remove_random": ("rmr", "Remove any one item"),
  "replace_random": ("rpr", 'Put "{word}" in place of any one item'),
}
# Pool -> its words, separated by spaces.
POOLS = {
  "letters": " ".join(string.ascii_uppercase),
  "names": (
    "Ada Ali Amy Ana Ben Bo Cai Carl Cleo Dan Dev Dora Eli Emma Eve Finn Fay Gus Gina Hal Hana Hugo"
    " Ian Ida Iris Jan Jo Jude Kai Kim Kira Lars Lea Leo Luz Max Mei Mina Ned Nia Noor Ole Omar Ona"
    " Pia Pam Paul Quin Rae Ravi Rosa Sam Sara Sven Tao Tess Tom Ugo Uma Vera Vik Wes Wim Xena Yan"
    " Yuki Zoe Zev"
  ),
}
FORMS = ("grid", "words")
ENOUGH = 1000  # draws to find a list of either split; one list in ten is a test's
BLANK = "."  # fills a field of the grid


@dataclasses.dataclass(frozen=True)
class Lists:
  """Item i is a pure function of (seed, split, i). No list of items is in both splits.

  `items` is the inclusive range of list lengths. The grid's items are `item_width` letters of
  `alphabet`; those of the prose come from `pool`. `size` bounds the index, nothing is stored.
  """

  split: str
  seed: int = 0
  tasks: tuple[str, ...] = ("copy", "reverse", "sort")
  form: str = "grid"
  items: tuple[int, int] = (4, 4)
  alphabet: str = string.ascii_lowercase
  item_width: int = 1
  pool: str = "names"
  size: int = 1 << 20
  name = "lists"
  generated = True

  def __post_init__(self):
    check_split(self.split)
    if not self.tasks or set(self.tasks) - set(TASKS):
      raise ValueError(f"lists: tasks={self.tasks} must name some of: {', '.join(TASKS)}")
    for field, known in (("form", FORMS), ("pool", tuple(POOLS))):
      if getattr(self, field) not in known:
        raise ValueError(f"lists: unknown {field}={getattr(self, field)!r}; known: {known}")
    if self.item_width not in (1, 2):
      raise ValueError(f"lists: item_width={self.item_width} must be 1 or 2")
    if not self.alphabet.isalnum() or len(set(self.alphabet)) != len(self.alphabet):
      raise ValueError(f"lists: alphabet={self.alphabet!r} must be different letters or digits")
    low, high = self.items
    if not 2 <= low <= high < len(self._words) or (self.form == "grid" and high > 9):
      raise ValueError(
        f"lists: items={self.items} must be a range within 2..{len(self._words) - 1}"
        " (at most 9 in the grid)"
      )
    if self.size < 1:
      raise ValueError(f"lists: size={self.size} must be at least 1")
    draw = random.Random(0)
    drawn = (self._draw_items(draw) for _ in range(ENOUGH))
    if all(split_of(f"lists {items}") != self.split for items in drawn):
      raise ValueError(
        f"lists: items={self.items} of {len(self._words)} words make so few lists that none is in "
        f"the {self.split} split: let them be longer, or of more words"
      )

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self.size:
      raise IndexError(f"lists: {index=} must be within 0..{self.size - 1}")
    draw = random.Random(hash_text(f"lists {self.split} {self.seed} {index}"))
    items = self._draw_items(draw)
    while split_of(f"lists {items}") != self.split:
      items = self._draw_items(draw)
    task = self.tasks[draw.randrange(len(self.tasks))]
    meta = _solve(task, items, self._words, draw)
    meta["form"] = self.form
    prompt, completion = self._grid(meta) if self.form == "grid" else _prose(meta)
    return Example(prompt, completion, meta)

  def fingerprint(self) -> dict[str, str]:
    return {"problems": digest(self)}

  @functools.cached_property
  def _words(self) -> tuple[str, ...]:
    if self.form == "words":
      return tuple(POOLS[self.pool].split())
    if self.item_width == 1:
      return tuple(self.alphabet)
    return tuple(a + b for a in self.alphabet for b in self.alphabet)

  @functools.cached_property
  def _needs(self) -> tuple[bool, bool, bool]:
    """Does some task name an index, name a word, make the list longer?"""
    return (
      any(task.endswith("index") for task in self.tasks),
      any(task.startswith(("insert", "replace")) for task in self.tasks),
      any(task.startswith("insert") for task in self.tasks),
    )

  def _draw_items(self, draw: random.Random) -> tuple[str, ...]:
    return tuple(draw.sample(self._words, draw.randint(*self.items)))

  def _grid(self, meta: dict) -> tuple[str, str]:
    blank = BLANK * self.item_width
    high = self.items[1]
    asks_index, asks_word, grows = self._needs
    head = [TASKS[meta["task"]][0]]
    if asks_index:
      head.append(BLANK if meta["index"] is None else str(meta["index"]))
    if asks_word:
      head.append(meta["word"] or blank)
    cells = high + grows
    body = [*meta["items"], *[blank] * (high - len(meta["items"]))]
    answer = [*meta["answer"], *[blank] * (cells - len(meta["answer"]))]
    return " ".join([*head, *body, "= "]), " ".join(answer)


def _solve(task: str, items: tuple[str, ...], pool: tuple[str, ...], draw: random.Random) -> dict:
  """The item: what is given, and the answer (one of the right ones in the random tasks)."""
  answer, word, index = list(items), None, None
  kind, _, variant = task.partition("_")
  if kind in ("insert", "replace"):
    word = draw.choice([x for x in pool if x not in items])
  if variant:
    index = draw.randrange(len(items) + (kind == "insert"))
  if kind == "reverse":
    answer.reverse()
  elif kind == "sort":
    answer.sort()
  elif kind == "shuffle":
    while tuple(answer) == items:
      draw.shuffle(answer)
  elif kind == "insert":
    answer.insert(index, word)
  elif kind == "remove":
    del answer[index]
  elif kind == "replace":
    answer[index] = word
  told = index if variant == "index" else None
  return {"task": task, "items": items, "word": word, "index": told, "answer": tuple(answer)}


def _prose(meta: dict) -> tuple[str, str]:
  asked = TASKS[meta["task"]][1].format(**meta)
  return f"{asked}: {list_text(meta['items'])} -> ", list_text(meta["answer"])


def list_text(items: tuple[str, ...]) -> str:
  return "[" + ", ".join(f'"{item}"' for item in items) + "]"
