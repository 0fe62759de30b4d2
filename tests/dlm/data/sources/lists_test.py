"""Items are pure, splits disjoint, the grid aligned."""

import pytest

from dlm.data import open_source
from dlm.data.sources.lists import TASKS

ALL = tuple(TASKS)


@pytest.mark.parametrize("form", ["grid", "words"])
def test_items_are_pure_functions_of_seed_split_and_index(form):
  first, again = (open_source("lists", seed=3, tasks=ALL, form=form) for _ in range(2))
  assert [first[i] for i in (9, 2)] == [again[i] for i in (9, 2)]
  other = open_source("lists", seed=4, tasks=ALL, form=form)
  assert [other[i] for i in range(5)] != [first[i] for i in range(5)]


def test_no_list_is_in_both_splits():
  """Few letters, so that every list is drawn many times."""
  options = {"tasks": ALL, "items": (2, 3), "alphabet": "abcdef"}
  seen = {"train": set(), "test": set()}
  for split in seen:
    for seed in (0, 1):
      source = open_source("lists", split, seed=seed, **options)
      seen[split] |= {source[i].meta["items"] for i in range(400)}
  assert not seen["train"] & seen["test"]
  assert len(seen["train"]) > 100 and len(seen["test"]) > 5


@pytest.mark.parametrize("width", [1, 2])
def test_the_grid_has_one_width_and_fixed_columns(width):
  source = open_source("lists", tasks=ALL, items=(3, 5), item_width=width)
  examples = [source[i] for i in range(100)]
  assert len({len(e.prompt) for e in examples}) == len({len(e.completion) for e in examples}) == 1
  assert {e.prompt.index("=") for e in examples} == {len(examples[0].prompt) - 2}
  assert {e.meta["task"] for e in examples} == set(ALL)
  widths = {tuple(map(len, (e.prompt + e.completion).split())) for e in examples}
  assert widths == {(3, 1, width, *[width] * 5, 1, *[width] * 6)}


def test_the_grid_spends_no_column_on_what_its_tasks_lack():
  example = open_source("lists", tasks=("reverse",), items=(4, 4), item_width=2)[0]
  items = example.meta["items"]
  assert example.prompt == f"rev {' '.join(items)} = "
  assert example.completion == " ".join(reversed(items))


@pytest.mark.parametrize("task", ALL)
def test_answers_follow_from_the_prompt(task):
  source = open_source("lists", tasks=(task,), form="words", items=(2, 5))
  for i in range(20):
    meta = source[i].meta
    items, answer = list(meta["items"]), list(meta["answer"])
    if task == "sort":
      assert answer == sorted(items)
    elif task == "shuffle":
      assert answer != items and sorted(answer) == sorted(items)
    elif task == "insert_index":
      assert answer[meta["index"]] == meta["word"] and set(answer) - {meta["word"]} == set(items)
    elif task.endswith("random"):
      assert meta["index"] is None
    assert (meta["word"] is None) == (not task.startswith(("insert", "replace")))
    assert meta["word"] not in items


@pytest.mark.parametrize(
  "wrong",
  [
    {"tasks": ("copy", "sing")},
    {"tasks": ()},
    {"form": "table"},
    {"items": (1, 4)},
    {"items": (5, 4)},
    {"items": (3, 26)},
    {"items": (2, 2), "alphabet": "abcd", "split": "test"},
    {"item_width": 3},
    {"alphabet": "aab"},
    {"size": 0},
    {"colour": "red"},
  ],
)
def test_wrong_options_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    open_source("lists", **wrong)
