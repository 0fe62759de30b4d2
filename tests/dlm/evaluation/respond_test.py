"""What a harness asks, without the harness: ids, windows, stops, lengths, chats."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm import build, files
from dlm.evaluation.answer_likelihood import AnswerScore
from dlm.evaluation.respond import Responder
from tests.dlm.evaluation import checkpoints

LENGTH = 32
CONFIG = {"policy": {"name": "fixed", "k": 1}, "stop": "never", "max_new_tokens": 5}


@pytest.fixture(scope="module")
def responder(tmp_path_factory):
  folder = checkpoints.write(tmp_path_factory.mktemp("runs") / "run", "block", LENGTH)
  return Responder(build.pretrained(folder), build.SamplingConfig.of(CONFIG), draws=16)


def text_of(ids):
  return bytes(ids.tolist()).decode()


def test_what_is_written_is_scored_as_greedy(responder):
  """One surest token a forward in each block of the model: the scorer's order is the sampler's."""
  asked = [responder._request(i, text, {}) for i, text in enumerate(["2 + 2 =", "Once"])]
  written = responder._generator({})(responder.params, asked)
  ids = [(r.tokens[:-5], np.array(done.row[-5:])) for r, done in zip(asked, written, strict=True)]
  wrong = [(prompt, np.append(answer[:-1], answer[-1] ^ 1)) for prompt, answer in ids]
  found = responder.scorer.is_greedy(responder.params, [*ids, *wrong])
  assert found == [True, True, False, False]


def test_weights_are_kept_as_the_config_says(responder):
  config = build.SamplingConfig.of({**CONFIG, "weights": "int8"})
  found = Responder(responder.trained, config, draws=16).params
  assert any(leaf.dtype == np.int8 for leaf in jax.tree.leaves(found))


def test_pairs_are_cut_where_the_harness_cuts(responder):
  bos = responder.trained.tokenizer.bos_id
  prompt, answer = responder.encode_pair("Is it? \n", "yes")
  assert (text_of(prompt), text_of(answer)) == ("Is it?", " \nyes")
  prompt, answer = responder.encode_pair("", "yes")
  assert prompt.tolist() == [bos] and text_of(answer) == "yes"
  before = responder.counts.truncated
  prompt, answer = responder.encode_pair("x" * 40 + "end", "yes")
  assert len(prompt) + len(answer) == LENGTH and text_of(prompt).endswith("xend")
  assert responder.counts.truncated == before + 1
  with pytest.raises(ValueError, match="a continuation of 40 tokens does not fit"):
    responder.encode_pair("x", "y" * 40)


def test_windows_score_every_token_once(responder, monkeypatch):
  ids = np.arange(100)
  windows = responder.windows(ids)
  assert np.array_equal(np.concatenate([answer for _, answer in windows]), ids)
  assert windows[0][0].tolist() == [responder.trained.tokenizer.bos_id]
  assert [len(prompt) for prompt, _ in windows] == [1, 1, 1, 25]  # the last: as much as fits
  assert windows[1][0][-1] == windows[0][1][-1]
  # Texts sum over their windows, errors in quadrature; one unknown error leaves the sum's unknown.
  errors = iter([3.0, 4.0, 1.0, None, 2.0])
  monkeypatch.setattr(
    responder,
    "_score",
    lambda found: [AnswerScore(-len(answer), next(errors), 1, True) for _, answer in found],
  )
  assert responder.rolling(["x" * 40, "y", "z" * 40]) == [
    AnswerScore(-40, 5, 2, True), AnswerScore(-1, 1, 1, True), AnswerScore(-40, None, 2, True),
  ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Written:
  id: int
  text: str
  tokens: str
  forwards: dict


@pytest.fixture
def made(responder, monkeypatch):
  """Which generators are asked for, in place of them: each writes A, B, ... up to the room."""
  asked = []

  def generator(shaping):
    asked.append(dict(shaping))

    def write(params, requests, *, seed):
      texts = ["ABCDEFGHIJKLMNOP"[: int(request.open.sum())] for request in requests]
      return [
        Written(r.id, text, text, {"window": len(text)})
        for r, text in zip(requests, texts, strict=True)
      ]

    return write

  monkeypatch.setattr(responder, "_generator", generator)
  return asked


def test_stops_lengths_and_drawing_are_honoured(responder, made):
  texts = responder.write([
    ("a", {}),
    ("b", {"until": ["F", "CD", ""], "max_gen_toks": 8, "do_sample": False}),
    ("c", {"until": "E", "max_new_tokens": 8, "temperature": 0.5, "do_sample": True}),
    ("d", {"max_tokens": 8, "do_sample": False, "temperature": 0.7, "top_k": 3}),
    ("e", {"max_gen_toks": 2, "temperature": 0.5}),
  ])  # fmt: skip
  assert texts == ["ABCDE", "AB", "ABCD", "ABCDEFGH", "AB"]
  assert made == [{}, {"temperature": 0.5}]  # the config's own temperature is 0
  assert (responder.counts.answers, responder.counts.tokens) == (5, 5 + 8 + 8 + 8 + 2)


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ({"num_beams": 4}, "generation_kwargs: unknown 'num_beams'; known: until, do_sample"),
    ({"max_gen_toks": 32}, "max_gen_toks=32 must lie between 0 and max_length=32"),
  ],
)
def test_what_cannot_be_written_is_refused(responder, made, words, said):
  with pytest.raises(ValueError, match=said):
    responder.write([("ab", words)])


def test_an_objective_without_likelihood_is_named(responder, monkeypatch):
  monkeypatch.setattr(responder, "scorer", None)
  with pytest.raises(ValueError, match="trained by 'bd3lm'"):
    responder.log_likelihoods([("a", "b")])


def test_a_chat_is_the_templates(responder, monkeypatch):
  """The last message may be gone on with."""
  template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
  template += "{{ '>' if add_generation_prompt }}"
  files.write(responder.trained.directory / "chat_template.jinja", template)
  monkeypatch.setattr(responder, "_quoted", None)
  said = [{"role": "user", "content": "Hi"}]
  assert responder.chat(said) == "[user] Hi\n>"
  begun = [*said, {"role": "assistant", "content": "Well, "}]
  assert responder.chat(begun, answer=False) == "[user] Hi\n[assistant] Well,"
  prompt, answer = responder.encode_pair("[user] Hi\n>", "yes")
  assert (text_of(prompt), text_of(answer)) == ("[user] Hi\n>", "yes")
