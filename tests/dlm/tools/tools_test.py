"""Calls: what they say, and that none of them stops the run."""

import json
import threading

import pytest

from dlm.tools import Corpus, Tools


def search(query: str) -> str:
  return f"found {query}"


def fails(query: str) -> str:
  raise KeyError(f"no {query}\nhere")


TOOLS = Tools({"search": search, "fails": fails, "number": lambda: 3}, seconds=10)


@pytest.mark.parametrize(
  ("text", "response"),
  [
    ("red fox", "found red fox"),
    ("17", "found 17"),
    ('{"name": "search", "arguments": {"query": "a"}}', "found a"),
    ('{"name": "fails", "arguments": {"query": "a"}}', "error: 'no a\\nhere'"),
    ('{"name": "number"}', "error: the tool returned int, not a text"),
    ('{"name": "walk"}', "error: there is no tool 'walk'; known: search, fails, number"),
    ('{"name": ["x"]}', "error: there is no tool ['x']; known: search, fails, number"),
    ('{"name": "search", "arguments": "a"}', "error: search: arguments='a' must be an object"),
    (
      '{"name": "search", "arguments": {"q": "a"}}',
      "error: search takes (query: str) -> str: missing a required argument: 'query'",
    ),
  ],
)
def test_a_call_gives_a_text_whatever_it_says(text, response):
  assert TOOLS.call(text).response() == response


def test_a_tool_that_hangs_is_waited_for_no_longer_than_its_limit():
  never = threading.Event()
  call = Tools({"wait": lambda query: str(never.wait())}, seconds=0.05).call("x")
  assert call.response() == "error: no response within 0.05 seconds"
  never.set()


@pytest.mark.parametrize(("tools", "seconds"), [({}, 1.0), ({"search": search}, 0.0)])
def test_tools_that_cannot_be_are_refused(tools, seconds):
  with pytest.raises(ValueError, match="Tools: "):
    Tools(tools, seconds)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
  documents = [
    {"title": "fox", "text": "A red fox jumps over a dog."},
    {"title": "dog", "text": "A dog sleeps."},
    {"text": "The sea is deep."},
  ]
  path.write_text("".join(json.dumps(each) + "\n" for each in documents))
  return Corpus(path, hits=2)


def test_the_best_document_comes_first_and_what_shares_no_word_does_not(corpus):
  assert corpus.search("red dog").splitlines() == [
    "fox: A red fox jumps over a dog.",
    "dog: A dog sleeps.",
  ]
  assert corpus.search("deep sea") == "3: The sea is deep."
  assert corpus.search("zebra") == corpus.search("") == "nothing found"
  assert corpus.open("dog") == "A dog sleeps."
  with pytest.raises(ValueError, match="there is no document 'cat'"):
    corpus.open("cat")


def test_a_line_that_is_no_document_is_named(tmp_path):
  path = tmp_path / "documents.jsonl"
  path.write_text('{"text": "x"}\n{"title": "y"}\n')
  with pytest.raises(ValueError, match=r"documents.jsonl, line 2: needs"):
    Corpus(path)
