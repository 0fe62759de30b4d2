"""Graders: right answers of every task score 1, damaged ones 0. Authors' verdicts: conformance."""

import pytest

from dlm.data import open_source
from dlm.data.sources.lists import TASKS
from dlm.evaluation.tasks import lists

OPEN_ENDED = ("shuffle", "insert_random", "remove_random", "replace_random")


@pytest.fixture(params=["grid", "words"])
def form(request):
  return request.param


def examples(task, form, count=20):
  source = open_source("lists", "test", tasks=(task,), form=form, items=(3, 5))
  return [source[i] for i in range(count)]


def written(items, form):
  return " ".join(items) if form == "grid" else "[" + ", ".join(f'"{x}"' for x in items) + "]"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_the_reference_answer_is_right(task, form, strict):
  assert {lists.grade(e, e.completion, strict) for e in examples(task, form)} == {1.0}


@pytest.mark.parametrize("task", TASKS)
def test_damaged_answers_are_wrong(task, form):
  for example in examples(task, form):
    answer = list(example.meta["answer"])
    assert lists.grade(example, written(answer[:-1], form)) == 0.0
    assert lists.grade(example, written([*answer, answer[0]], form)) == 0.0
    assert lists.grade(example, written(["?", *answer[1:]], form)) == 0.0
    assert lists.grade(example, "") == 0.0
    if task != "copy":
      assert lists.grade(example, written(example.meta["items"], form)) == float(
        answer == list(example.meta["items"])  # a list may be sorted already
      )


@pytest.mark.parametrize("task", OPEN_ENDED)
def test_open_ended_tasks_take_every_right_answer(task, form):
  example = examples(task, form, 1)[0]
  items, word = list(example.meta["items"]), example.meta["word"]
  right = {
    "shuffle": [items[1:] + items[:1], items[::-1]],
    "insert_random": [[*items[:i], word, *items[i:]] for i in range(len(items) + 1)],
    "remove_random": [items[:i] + items[i + 1 :] for i in range(len(items))],
    "replace_random": [[*items[:i], word, *items[i + 1 :]] for i in range(len(items))],
  }[task]
  assert {lists.grade(example, written(answer, form)) for answer in right} == {1.0}
  assert len({tuple(answer) for answer in right}) == len(right) > 1


@pytest.mark.parametrize(
  ("text", "lenient", "strict"),
  [
    ('["A", "B"]', ["A", "B"], ["A", "B"]),
    ('so: ["A", "B"] done', ["A", "B"], ["A", "B"]),
    ('["A"] -> ["B", "C"]', ["B", "C"], ["B", "C"]),
    ("A, B", ["A", "B"], None),
    ('["A","B"]', ["A", "B"], None),
    ('["A", "B"', ["A", "B"], None),
    ("", [], None),
  ],
)
def test_parse_list(text, lenient, strict):
  assert lists.parse_list(text) == lenient
  assert lists.parse_list(text, strict=True) == strict


@pytest.mark.parametrize(
  ("text", "lenient", "strict"),
  [
    ("ab cd ..", ["ab", "cd"], ["ab", "cd"]),
    ("ab cd", ["ab", "cd"], None),
    (" ab  cd ..\nmore", ["ab", "cd"], None),
    ("ab .. cd", ["ab", "cd"], None),
    ("a bc ..", ["a", "bc"], None),
  ],
)
def test_parse_grid(text, lenient, strict):
  assert lists.parse_grid(text, "gh ij ..") == lenient
  assert lists.parse_grid(text, "gh ij ..", strict=True) == strict
