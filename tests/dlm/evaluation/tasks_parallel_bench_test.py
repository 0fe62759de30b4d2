"""ParallelBench made anew: every task's own answer is right, others are not, splits are apart."""

import pytest

from dlm.data import open_source
from dlm.data.sources.parallel_bench import BENCHMARK, TASKS
from dlm.evaluation import tasks
from dlm.evaluation.tasks.sentences import well_formed


@pytest.mark.parametrize("task", TASKS)
def test_the_reference_answer_is_right_and_others_are_not(task):
  asked = tasks.questions(f"parallel_bench:{task}", size=5, shots=1)
  assert len({question.text for question in asked}) == 5
  for question in asked:
    example, answer = question.example, question.example.completion
    assert question.kind.grade(example, answer) == 1
    for wrong in ("", answer[: len(answer) // 2], "No.", example.prompt * (task != "copy")):
      assert question.kind.grade(example, wrong) == 0, wrong
    assert question.score(f"{answer}\n\nand so on", chat=False) == 1
    assert question.text.count("Answer:\n") == 2 and question.text.endswith("\nAnswer:\n")


def test_the_benchmark_is_seventeen_tasks_of_all_lengths():
  source = open_source("parallel_bench:all", "test", size=8)
  assert len(BENCHMARK) == 17 and len(source) == 17 * 8
  asked = tasks.questions("parallel_bench:all", size=1, shots=1)
  assert [question.task for question in asked] == [*BENCHMARK]
  assert {len(question.shown) for question in asked} == {1}
  copies = [source[i].completion.count('", "') + 1 for i in range(8)]
  assert sorted(copies) == [3, 3, 4, 4, 5, 5, 6, 6]
  long = open_source("parallel_bench:shuffle", "test", size=2, items=(15, 15))
  assert {long[i].completion.count('", "') + 1 for i in range(2)} == {15}


def test_a_seed_makes_the_same_records_and_no_question_is_in_both_splits():
  def prompts(split, seed):
    source = open_source("parallel_bench:sudoku_n4_12,summary", split, seed=seed, size=20)
    return [source[i].prompt for i in range(len(source))]

  assert prompts("test", 0) == prompts("test", 0) != prompts("test", 1)
  assert not {*prompts("test", 0)} & {*prompts("train", 0)}


@pytest.mark.parametrize(
  ("spec", "options", "message"),
  [
    ("copy,tpyo", {}, "unknown task 'tpyo'; known: all, copy, reverse"),
    ("summary", {"items": (3, 4)}, r"items=\(3, 4\) is for lists, and summary has none"),
    ("copy", {"items": (4, 3)}, "must be a range within 2..99"),
    ("copy", {"size": 0}, "size=0 must be a whole number of at least 1"),
  ],
)
def test_mistakes_are_told(spec, options, message):
  with pytest.raises(ValueError, match=message):
    open_source(f"parallel_bench:{spec}", "test", **options)


def test_any_wording_that_keeps_the_facts_is_a_paraphrase():
  (question,) = tasks.questions("parallel_bench:paraphrase", size=1)
  answer = question.example.meta["answer"]
  words = dict(
    zip(("quality", "who", "did", "what", "place", "time"), answer["facts"], strict=True)
  )
  said = {name: word[-1] for name, word in words.items()}
  form = "Near the {place} the {what} was {did} by a person, the {quality} {who} ({time})."
  assert question.score(form.format(**said), chat=True) == 1
  assert question.score(form.format(**said | {"what": "house"}), chat=True) == 0
  assert question.score(answer["text"], chat=True) == 0  # a copy


@pytest.mark.parametrize(
  ("text", "good"),
  [
    ("The dog ran home.", True),
    ('He said: "An hour has passed." Then a unicorn came!', True),
    ("I think that that is fine (really).", True),
    ("the dog ran home.", False),
    ("The dog ran home", False),
    ("The dog dog ran home.", False),
    ("A apple fell down.", False),
    ("An dog ran home.", False),
    ("The dog , it ran.", False),
    ("The (dog ran home.", False),
    ("Run home.", False),
    ("", False),
  ],
)
def test_what_a_rule_sees_of_grammar(text, good):
  assert well_formed(text) == good
