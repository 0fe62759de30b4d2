"""A line of training data is what was sampled, or says that it is not."""

import dataclasses
import json

import numpy as np
import pytest

from dlm.answers import Answers, flaw
from dlm.data import BpeTokenizer, chat, open_source
from dlm.data.chat import Conversation
from dlm.data.prompts import Prompt
from dlm.generate import Request
from tests.dlm.build import directories
from tests.dlm.completions_test import DONE

# As SmolLM2's: it begins with a system message of its own.
OWN_SYSTEM = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\\nthe cat sat<|im_end|>\\n' }}{% endif %}"
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STRIPS = OWN_SYSTEM.replace("+ message['content'] +", "+ message['content'].strip() +")
TALK = [
  {"role": "user", "content": "the cat"},
  {"role": "assistant", "content": "sat"},
  {"role": "user", "content": "on"},
]


def answered(tmp_path, text, messages=TALK[:1], template=OWN_SYSTEM, ids=None, reason="stop_id"):
  """The line of one answer, and what training makes of it: all ids, and those that are learned."""
  directories.tokenizer_files(tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  config["chat_template"] = template
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  tokenizer = BpeTokenizer.from_file(tmp_path)
  asked, template = Conversation(messages), chat.template_of(tokenizer)
  (given_T,) = template.encode([asked], tokenizer)
  request = Request.from_ids(0, "", given_T, tokenizer.mask_id, slots=200)
  answers = Answers.to([request], [Prompt(asked, "a test")], template, tokenizer)
  ids = list(map(int, tokenizer.encode(text) if ids is None else ids(tokenizer)))
  done = dataclasses.replace(DONE, id=0, text=text, tokens=ids, reason=reason)
  (line,) = answers.lines([done])
  path = tmp_path / "train.jsonl"
  path.write_text(json.dumps(line) + "\n")
  (path.with_name("test.jsonl")).write_text("")
  (example,) = open_source(f"jsonl:{tmp_path}/{{split}}.jsonl")
  (lesson,) = template.lessons([example.talk], tokenizer)
  sampled_T = np.array([*given_T, *ids, tokenizer.eos_id])
  return line, lesson, sampled_T, len(given_T)


@pytest.mark.parametrize("turns", [1, 3])
def test_what_is_trained_is_what_is_sampled(tmp_path, turns):
  """With the template's own system message, and after earlier turns."""
  line, lesson, sampled_T, given = answered(tmp_path, "on the mat", TALK[:turns])
  assert line["reads_back"] and flaw(line) == ""
  np.testing.assert_array_equal(lesson.ids_T, sampled_T)
  assert lesson.learned_T[given:].all() and lesson.unlearned == 0
  assert lesson.learned_T[:given].sum() == (0 if turns == 1 else 2), "sat, and its end"
  assert line["messages"] == [*TALK[:turns], {"role": "assistant", "content": "on the mat"}]
  assert line["prompt_source"] == "a test"


@pytest.mark.parametrize(
  ("text", "options"),
  [
    ("the", {"ids": lambda words: [words.encode(c)[0] for c in "the"]}),  # where it has a token
    ("cat\n", {"template": STRIPS}),
    ("\ufffd", {"ids": lambda words: words.encode("\u00e9")[:1]}),  # half of a character
  ],
)
def test_text_with_other_ids_is_told(tmp_path, text, options):
  line, lesson, sampled_T, _ = answered(tmp_path, text, **options)
  assert not np.array_equal(lesson.ids_T, sampled_T)
  assert line["reads_back"] is False
  assert flaw(line) == "its text has other ids than those that were sampled"


def test_an_answer_without_its_end_is_told(tmp_path):
  line, *_ = answered(tmp_path, "the cat", reason="length")
  assert line["reads_back"] and flaw(line) == "did not end by itself (length)"
