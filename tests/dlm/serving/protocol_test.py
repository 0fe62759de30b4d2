"""What a body becomes that no server is needed for."""

import types

import pytest

from dlm.data import ByteTokenizer
from dlm.data.chat import ChatTemplate
from dlm.generate import spans
from dlm.serving.asks import Event, Hole
from dlm.serving.grammars import Words
from dlm.serving.protocol import Reader, Refused
from dlm.serving.replies import Replies

BYTES = ByteTokenizer()
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<a>{% endif %}"


def reader(**own):
  words = Words(BYTES, never=(256, 257, 259), stops=(258,))
  fields = {"slots": 64, "new": 3, "bos": False, "words": words} | own
  return Reader(
    model="m", tokenizer=BYTES, template=lambda: ChatTemplate(TEMPLATE, {}),
    start_within=1.0, end_within=1.0, **fields,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("body", "text"),
  [({"prompt": "ab"}, "ab"), ({"prompt": "a[[2]]b", "infill": True}, "ab"),
   ({"prompt": "a", "suffix": "b", "max_tokens": 2}, "ab")],
)  # fmt: skip
def test_every_text_begins_with_bos_where_the_config_says_so(body, text):
  request = reader(bos=True).completion(body, "").asks[0].request
  assert request.tokens[~request.open].tolist() == [BYTES.bos_id, *text.encode()]


def test_what_does_not_fit_says_by_how_much():
  with pytest.raises(Refused, match="5 tokens and 60 new ones exceed the 64") as refused:
    reader().completion({"prompt": "12345", "max_tokens": 60}, "")
  assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")


@pytest.mark.parametrize(
  ("body", "says"),
  [
    ({"prompt": "a", "suffix": "b", "max_tokens": 10**15}, "2 tokens and 1000000000000000 new"),
    ({"prompt": "a[[1000000000000000]]", "infill": True}, "at most 64 tokens"),
    ({"prompt": "[[40]]a[[40]]", "infill": True}, "at most 64 tokens"),
    ({"prompt": "[[0]]", "infill": True}, "at least one token"),
    ({"prompt": [1, 2**40]}, "must hold ids from 0 to 259"),
    ({"prompt": [1, -(10**30)]}, "must hold ids from 0 to 259"),
  ],
)
def test_no_number_of_a_prompt_is_too_large_to_be_refused(body, says):
  """Petabytes would be asked of the system, or gigabytes of a server that others use."""
  with pytest.raises(Refused, match=says) as refused:
    reader().completion(body, "")
  assert (refused.value.status, refused.value.param) == (400, "prompt")


def test_top_p_is_the_requests_own():
  asks = [reader().completion({"prompt": "a", **own}, "").asks[0] for own in ({}, {"top_p": 0.5})]
  assert [ask.top_p for ask in asks] == [None, 0.5]


SAID = [{"role": "user", "content": "[[9]]"}]
FILLED = {
  "infill": True,
  "messages": [*SAID, {"role": "assistant", "content": " [[2]]: [[3]][[1]]!"}],
}


def test_holes_of_an_answer_are_positions_of_the_conversation():
  """In the last message alone, white space as the template has it; it is what is answered."""
  holes = [{"choice": ["ab", "cd"]}, None]
  call = reader().chat(FILLED | {"holes": holes}, "")
  (ask,) = call.asks
  text = BYTES.decode(ask.request.tokens, show_mask=True)
  assert text == "<user>[[9]]</><assistant>\u2591\u2591: \u2591\u2591\u2591\u2591!</>"
  assert [end - first for first, end in spans(ask.request.open, ask.request.open)] == [2, 4]
  assert ask.holes[0].fits(2) and ask.holes[1] is None and not ask.streams
  done = types.SimpleNamespace(
    spans=["cd", "e f"], text="all of it", tokens=[1], logprobs=[None], reason="length",
    forwards={"full": 2}, tpf=0.5, queries=9, computed=9.0,
  )  # fmt: skip
  told = [Hole("cd", -0.5, 0.25), Hole("e f", None, None)]
  (choice,) = Replies(call, "m", BYTES, chat=True).whole([Event(0, completion=done, holes=told)])[
    "choices"
  ]
  assert choice["message"]["content"] == " cd: e f!"
  assert choice["dlm"]["holes"][0] == {"text": "cd", "logprob": -0.5, "entropy": 0.25}


@pytest.mark.parametrize(
  ("body", "param", "says"),
  [
    ({"holes": [{"choice": ["a", "bcd"]}]}, "holes[0]", None),
    ({"holes": [{"choice": []}]}, "holes[0]", "must be"),
    ({"holes": [{"choice": ["a"], "regex": "a"}]}, "holes[0]", "must be"),
    ({"holes": [{"guess": "a"}]}, "holes[0]", "must be"),
    ({"holes": ["a"]}, "holes[0]", "must be"),
    ({"holes": {"choice": ["a"]}}, "holes", "of type list"),
    ({"holes": [None, None]}, "holes", "each of 1 holes"),
    ({"holes": [{"choice": ["a" * 7]}]}, "holes[0]", "at most 6 tokens"),
    ({"holes": [{"tokens": ["ab"]}]}, "holes[0]", "is 2 tokens"),
    ({"holes": [{"tokens": [258]}]}, "holes[0]", "may be written"),
    ({"holes": [{"choice": ["a"]}], "stop": "b"}, "stop", "without holes"),
    ({"prompt": "[[2]]b", "infill": True, "max_tokens": None, "holes": [{"choice": ["ab", "c"]}]},
     "holes[0]", "'c' cannot be said in exactly 2 tokens"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "not supported"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}, "holes": [None]},
     "response_format", "whole answer"),
    ({"guided_regex": "a"}, "guided_regex", "not a field"),
    ({"top_p": 0}, "top_p", "positive"),
    ({"top_p": 1.5}, "top_p", "from 0 to 1"),
  ],
)  # fmt: skip
def test_what_holes_cannot_say_is_named(body, param, says):
  body = {"prompt": "x", "max_tokens": 6} | body
  if says is None:  # an answer may end before its last token: both choices fit
    assert reader().completion(body, "").asks[0].holes
    return
  with pytest.raises(Refused, match=says) as refused:
    reader().completion(body, "")
  assert refused.value.status == 400 and refused.value.param == param
  with pytest.raises(Refused, match=r"serving\.constraints"):
    reader(words=None).completion({"prompt": "x", "holes": [{"choice": ["a"]}]}, "")


@pytest.mark.parametrize(
  ("messages", "says"),
  [
    (SAID, "the last message, a text of the assistant's"),
    ([*SAID, {"role": "assistant", "content": "a"}], "needs a last message with holes"),
    ([*SAID, {"role": "assistant", "content": "[[80]]"}], "at most 64 tokens"),
    ([*SAID, {"role": "assistant", "content": "[[60]]"}], "exceed the 64"),
  ],
)
def test_what_cannot_be_filled_in_is_named(messages, says):
  with pytest.raises(Refused, match=says) as refused:
    reader().chat({"messages": messages, "infill": True}, "")
  assert refused.value.status == 400
