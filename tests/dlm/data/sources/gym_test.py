"""Tasks of reasoning-gym as documents and as prompts; where the package is not, how to get it."""

import sys

import pytest

from dlm.data import open_source, prompts
from dlm.data.sources.example import split_of

SPEC = "reasoning_gym:chain_sum,gcd"


def questions(split, seed=0, **options):
  source = open_source(SPEC, split, seed=seed, **options)
  return [source[i].prompt for i in range(len(source))]


def test_held_out_questions_are_in_no_seeds_training():
  pytest.importorskip("reasoning_gym")
  train = questions("train", size=60, chain_sum={"max_digits": 1, "max_terms": 2})
  assert len({*train}) == len(train) == 120
  for seed in (0, 1, 99):
    held_out = questions("test", seed, size=20)
    assert len(held_out) == 40 and {*held_out}.isdisjoint(train)
    asked = [text.removeprefix("Question: ").removesuffix("\nAnswer:") for text in held_out]
    assert all(split_of(f"reasoning_gym {text}") == "test" for text in asked)


def test_documents_are_text_or_conversations():
  pytest.importorskip("reasoning_gym")
  plain, talks = (open_source(SPEC, size=2, chat=chat) for chat in (False, True))
  assert [plain[i].meta["task"] for i in range(4)] == ["chain_sum"] * 2 + ["gcd"] * 2
  for ours, talk in ((plain[i], talks[i]) for i in range(4)):
    user, assistant = talk.talk.messages
    item = ours.meta["item"]
    asked = item.entry["question"]
    assert ours.prompt == f"Question: {asked}\nAnswer:"
    assert user["content"] == f"{asked}\nGive only the final answer."
    assert ours.completion == " " + assistant["content"] == f" {item.entry['answer']}"
    assert item.dataset.score_answer(assistant["content"], item.entry) == 1


def test_prompts_of_several_tasks_take_turns():
  pytest.importorskip("reasoning_gym")
  found = prompts.collect([SPEC], size=20, configs={"gcd": (("max_numbers", 2),)})
  asked = [prompt.talk.messages[0]["content"] for prompt in found]
  assert {prompt.source for prompt in found} == {SPEC}
  divisors = [text for text in asked if "Divisor" in text]
  assert 5 < len(divisors) < 15 and all(text.count(",") == 1 for text in divisors)


@pytest.mark.parametrize(
  ("spec", "options", "message"),
  [
    ("reasoning_gym:none", {}, "reasoning_gym: unknown task 'none'; known: ab, "),
    (SPEC, {"gcd": {"x": 1}}, "reasoning_gym: gcd with {'x': 1}: "),
    (SPEC, {"gcd": {"min_numbers": 9}}, "gcd with {'min_numbers': 9}: max_numbers must be"),
    (SPEC, {"lcm": {}}, "settings of 'lcm', which is none of chain_sum,gcd"),
    (SPEC, {"size": 0}, "size=0 must be a whole number of at least 1"),
    ("reasoning_gym:boxnet", {"size": 1}, "boxnet stores no answer to learn: None"),
  ],
)
def test_what_is_no_task_is_refused(spec, options, message):
  pytest.importorskip("reasoning_gym")
  with pytest.raises(ValueError, match=message):
    open_source(spec, **options)


def test_missing_package_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'dlm\[tasks\]'"):
    open_source(SPEC)
