"""Tasks of the package reasoning-gym: seeded, without a download, each with a scorer of its own.

Arithmetic, sorting, puzzles, ...: `reasoning_gym:chain_sum,number_sorting`. Item i of a task
follows from seed + i, so seeds share nearly all of their items: what is held out is decided by a
hash of the question, and no seed moves it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dlm.data.chat import Conversation, from_user
from dlm.data.install import require
from dlm.data.sources.example import Documents, Example, check_split, split_of

ENOUGH = 50  # items that are looked at for each that is wanted

# How a question is put, in training as in evaluation.
TEXT, ANSWER = "Question: {question}\nAnswer:", " {answer}"
MESSAGE = "{question}\nGive only the final answer."


class Item(NamedTuple):
  task: str
  dataset: Any  # of the package: its `score_answer(text, entry)` says how right a text is
  entry: Mapping[str, Any]  # question, answer, metadata


def items(
  names: str, seed: int, size: int, configs: Mapping[str, Any] | None = None
) -> dict[str, Iterator[Item]]:
  """The items of each of these tasks, of which `size` different ones are wanted.

  Args:
    names: of tasks, with commas between them.
    configs: task -> its settings, as a mapping or pairs.

  Raises:
    ValueError: a task or a setting is unknown.
    ModuleNotFoundError: how to install the package.
  """
  package = require("reasoning_gym", "tasks")
  known = require("reasoning_gym.factory", "tasks").DATASETS
  tasks, configs = names.split(","), configs or {}
  for name in (*tasks, *configs):
    if name not in known:
      raise ValueError(f"reasoning_gym: unknown task {name!r}; known: {', '.join(sorted(known))}")
  if unused := [name for name in configs if name not in tasks]:
    raise ValueError(f"reasoning_gym: settings of {unused[0]!r}, which is none of {names}")
  found = {}
  for name in tasks:
    config = dict(configs.get(name, {}))
    try:
      dataset = package.create_dataset(name, seed=seed, size=ENOUGH * size, **config)
    except (TypeError, ValueError, AssertionError) as error:
      raise ValueError(f"reasoning_gym: {name} with {config}: {error}") from error
    found[name] = _each(name, dataset)
  return found


def _each(task: str, dataset: Any) -> Iterator[Item]:
  for i in range(len(dataset)):
    yield Item(task, dataset, dataset[i])


def key(item: Item) -> str:
  """What decides its split."""
  return f"reasoning_gym {item.entry['question']}"


def read_gym(
  names: str, split: str, seed: int, *, size: int = 500, chat: bool = False, **configs
) -> Documents:
  """`size` different items of each task, fewer if it has no more.

  Args:
    chat: as conversations, for a chat template; else as text to continue.
    configs: settings of a task, under its name: chain_sum={"max_digits": 2}.
  """
  check_split(split)
  if type(size) is not int or size < 1:
    raise ValueError(f"reasoning_gym: {size=} must be a whole number of at least 1")
  examples = []
  for found in items(names, seed, size, configs).values():
    examples += [_example(item, chat) for item in chosen(found, split, size)]
  return Documents(f"reasoning_gym:{names}", tuple(examples))


def chosen(found: Iterator[Item], split: str, size: int) -> list[Item]:
  """The first `size` of the split, no question twice."""
  fresh: dict[str, Item] = {}
  for item in found:
    if split_of(key(item)) == split:
      fresh.setdefault(item.entry["question"], item)
      if len(fresh) == size:
        break
  return list(fresh.values())


def _example(item: Item, chat: bool) -> Example:
  question, answer = item.entry["question"], item.entry["answer"]
  if not isinstance(answer, str):
    raise ValueError(f"reasoning_gym: {item.task} stores no answer to learn: {answer!r:.40}")
  meta = {"task": item.task, "item": item, "question": question, "answer": answer}
  prompt, completion = TEXT.format(question=question), ANSWER.format(answer=answer)
  if not chat:
    return Example(prompt, completion, meta)
  asked = from_user(MESSAGE.format(question=question))
  talk = Conversation([*asked, {"role": "assistant", "content": answer}])
  return Example("", answer, meta, talk)
