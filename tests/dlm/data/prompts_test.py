"""Prompts: many, different, and those that are held out are never asked in training."""

import json

import pytest

from dlm.data import prompts
from dlm.data.prompts import everyday, library


def texts(*sources, **options):
  return [prompt.talk.messages[0]["content"] for prompt in prompts.collect(sources, **options)]


@pytest.mark.parametrize("source", ["everyday", "stdlib"])
def test_held_out_prompts_are_never_asked_in_training(source):
  """Nor with another seed; a seed's prompts are the same in every run."""
  train = texts(source, size=2500)
  assert train[:100] == texts(source, size=100) and len({*train}) == 2500
  held_out = {text for seed in (0, 5) for text in texts(source, split="test", size=800, seed=seed)}
  assert len(held_out) > 900, "seeds differ"
  assert held_out.isdisjoint(train)
  both = texts(source, split="all", size=2000)
  assert [text for text in both if text in {*train}] == train[: len(both) - len(held_out & {*both})]


def test_everyday_questions_vary():
  """Every template is used, every blank filled, and no word stands twice in a question."""
  asked = [everyday.question(0, i) for i in range(2000)]
  assert len({*asked}) > 1600 and not any("{" in text for text in asked)
  assert len({" ".join(text.split()[:3]) for text in asked}) > 100
  for template in everyday.TEMPLATES:
    start = template.partition("{")[0]
    assert not start or any(text.startswith(start) for text in asked)


def test_library_questions_are_about_all_kinds_and_keep_modules_together():
  asked = list(library.questions(0))
  assert len(asked) > 20_000 and len({text for text, _ in asked}) > 20_000
  for asks in library.ABOUT.values():
    start = asks[0].partition("{")[0]
    assert sum(text.startswith(start) for text, _ in asked) > 500
  groups = {group for text, group in asked if "`textwrap.dedent`" in text}
  assert groups == {"module textwrap"}
  assert max(len(text) for text, _ in asked) < library.LONGEST + 200


def test_prompts_of_a_file_are_all_there_and_once(tmp_path):
  said = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]}
  tools = {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]}
  written = ["a", {"prompt": "b"}, said, "a", tools]
  path = tmp_path / "in.jsonl"
  path.write_text("".join(json.dumps(each) + "\n" for each in written))
  found = prompts.collect([f"jsonl:{path}"], "all", size=1)
  assert [prompt.talk.messages[-1]["content"] for prompt in found] == ["a", "b", "hi", "a"]
  assert found[2].record() == said | {"prompt_source": f"jsonl:{path}"}
  assert found[3].record()["tools"] == [{"name": "f"}]
  again = tmp_path / "again.jsonl"
  again.write_text("".join(json.dumps(prompt.record()) + "\n" for prompt in found))
  assert [p.talk.messages for p in prompts.collect([f"jsonl:{again}"], "all")] == [
    p.talk.messages for p in found
  ]
  apart = [texts(f"jsonl:{path}", split=split) for split in ("train",)]
  assert {*apart[0]} <= {"a", "b", "x"}


def test_the_answer_of_a_conversation_is_not_asked(tmp_path):
  """What another model said last is what this one is to say anew."""
  said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  path = tmp_path / "in.jsonl"
  path.write_text(json.dumps({"messages": [*said, *said]}) + "\n")
  (found,) = prompts.collect([f"jsonl:{path}"], "all")
  assert found.talk.messages == [*said, said[0]]


@pytest.mark.parametrize(
  ("sources", "options", "message"),
  [
    (["stdlib"], {"size": 10**6}, r"stdlib has \d+ prompts of split='train', fewer than 1000000"),
    (["everyday"], {"size": 0}, "size=0 must be at least 1"),
    (["everyday"], {"split": "dev"}, "unknown split='dev'; known: train, test, all"),
    (["everyday:x"], {}, "unknown source of prompts 'everyday:x'"),
    ([], {}, "no source of prompts is named"),
  ],
)
def test_what_cannot_be_asked_is_refused(sources, options, message):
  with pytest.raises(ValueError, match=message):
    prompts.collect(sources, **options)
