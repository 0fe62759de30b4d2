"""Problems as they are asked, and what their graders take for right."""

import dataclasses

import pytest

from dlm.data import open_source
from dlm.evaluation import tasks
from dlm.evaluation.tasks import gym
from tests.dlm.completions_test import DONE

SUMS = "reasoning_gym:chain_sum"


def test_worked_examples_stand_before_a_problem():
  """As text and as turns; they are of the training split, and what is asked is held out."""
  asked = tasks.questions("lists:copy,reverse", size=3, shots=2)
  assert [question.task for question in asked] == ["copy"] * 3 + ["reverse"] * 3
  question = asked[4]
  first, second, own, answer = (*question.text.split("\n"), question.example.completion)
  assert own == question.example.prompt and own.startswith("rev ") and own.endswith("= ")
  assert [first, second] == [each.prompt + each.completion for each in question.shown]
  assert len({first, second, own + answer}) == 3
  said = [(message["role"], message["content"]) for message in question.talk.messages]
  assert said[:2] == [("user", first[: -len(answer)]), ("assistant", first[-len(answer) :])]
  assert len(said) == 5 and said[-1] == ("user", own)
  assert tasks.questions("lists:copy", size=1, seed=1)[0].text != asked[0].text
  (words,) = tasks.questions("lists:sort", size=1, options={"form": "words"})
  assert words.text.startswith("Sort the list from A to Z: [")


def test_a_text_is_judged_up_to_its_end_and_a_message_as_a_whole():
  question = tasks.questions("lists:copy", size=1)[0]
  answer = question.example.completion
  assert question.score(f" {answer}\nrev a b", chat=False) == 1
  assert question.score("a " + answer, chat=False) == 0
  assert question.score("\n" + answer, chat=False) == 0 < question.score("\n" + answer, chat=True)


def test_results_are_counted_by_task():
  asked = tasks.questions("lists:copy", size=4) + tasks.questions("lists:sort", size=1)
  ends = ("stop_id", "stop_id", "length", "length", "stop_id")
  done = [dataclasses.replace(DONE, reason=reason) for reason in ends]
  found = tasks.results(asked, [1.0, 0.0, 1.0, 1.0, 0.0], done)
  assert {task: result.record() for task, result in found.items()} == {
    "copy": {
      "n": 4, "right": 3.0, "ended": 2, "tokens": 8, "forwards": 12, "samples": 1, "accuracy": 0.75,
      "standard_error": 0.25, "tokens_per_forward": 2 / 3,
    },
    "sort": {
      "n": 1, "right": 0.0, "ended": 1, "tokens": 2, "forwards": 3, "samples": 1, "accuracy": 0.0,
      "standard_error": None, "tokens_per_forward": 2 / 3,
    },
  }  # fmt: skip
  assert found["copy"].describe() == (
    "75.0 +- 25.0 % of 4 right, 2 ended by themselves, 0.67 tokens a forward"
  )
  assert found["sort"].describe().startswith("0.0 % of 1 right")


def test_samples_of_a_problem_are_one_problem():
  asked = [question for question in tasks.questions("lists:copy", size=2) for _ in range(4)]
  scores = [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
  assert tasks.pass_rates(asked, scores, 4) == {"copy": {1: 0.125, 4: 0.5}}
  result = tasks.results(asked, [1.0, 0.0] * 4, [DONE] * 8, samples=4)["copy"]
  assert (result.n, result.accuracy, result.standard_error) == (8, 0.5, 0.5)


@pytest.mark.parametrize("spec", ["lists", "stdlib:x", "nothing:copy", "lists:"])
def test_unknown_tasks_list_the_known(spec):
  known = r"unknown task .*; known: lists:NAMES, parallel_bench:NAMES, reasoning_gym:NAMES, pub"
  with pytest.raises(ValueError, match=known):
    tasks.questions(spec, size=1)


# -------------------------------------------------------------------------------------------------
# reasoning-gym


def test_only_a_full_score_is_right():
  """The package gives text that holds the answer a part of the score."""
  pytest.importorskip("reasoning_gym")
  (question,) = tasks.questions("reasoning_gym:gcd", size=1, options={"gcd": {"max_numbers": 2}})
  answer = question.example.completion
  item = question.example.meta["item"]
  assert 0 < item.dataset.score_answer(f"it is {answer}", item.entry) < 1
  assert question.score(f"it is {answer}", chat=True) == 0
  for text in (answer, f" {answer}\n", f"Sure: <answer> {answer} </answer>."):
    assert question.score(text, chat=True) == 1
  assert question.score(f"<answer>{answer}</answer> or <answer>0</answer>", chat=True) == 0
  assert question.score(f" {answer}\n\nQuestion: more", chat=False) == 1
  assert question.text.startswith("Question: ") and question.text.endswith("\nAnswer:")


def test_settings_and_worked_examples_of_several_tasks():
  pytest.importorskip("reasoning_gym")
  options = {"gcd": {"max_numbers": 2}, "chain_sum": {"max_terms": 2}}
  asked = tasks.questions(f"{SUMS},gcd", size=2, shots=1, options=options)
  assert [question.task for question in asked] == ["chain_sum"] * 2 + ["gcd"] * 2
  assert all(len(question.shown) == 1 for question in asked)
  (shown,) = asked[0].shown
  assert asked[0].text.startswith(f"{shown.prompt} {shown.meta['answer']}\n\nQuestion: ")
  said = [message["content"] for message in asked[0].talk.messages]
  question = shown.meta["question"]
  assert said[:2] == [f"{question}\nGive only the final answer.", shown.meta["answer"]]
  assert asked[0].text.count("+") + asked[0].text.count(" - ") <= 2


@pytest.mark.parametrize(
  ("task", "message"),
  [
    ("n_queens", "n_queens is not graded: its scorer runs answers as code"),
    ("game_of_life_halting", "takes any text for right"),
  ],
)
def test_tasks_that_cannot_be_judged_are_refused(task, message):
  pytest.importorskip("reasoning_gym")
  with pytest.raises(ValueError, match=message):
    tasks.questions(f"reasoning_gym:{task}", size=1)


def test_answers_are_not_run_as_code(tmp_path):
  """The package's own scorer of this task would make the file."""
  pytest.importorskip("reasoning_gym")
  example = open_source("reasoning_gym:countdown", "test", size=1)[0]
  assert gym.grade(example, example.completion) == 1
  path = tmp_path / "made"
  said = f"__import__('pathlib').Path({str(path)!r}).touch()"
  assert gym.grade(example, said) == 0 and not path.exists()
  assert gym.grade(example, "9**9**9**9") == gym.grade(example, "9 * *9") == 0
