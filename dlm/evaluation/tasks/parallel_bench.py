"""Graders of ParallelBench's tasks (2510.04767), on our own items (`dlm/data/sources`).

Lists and puzzles are graded by the authors' rules, in their lenient form. Of texts they ask that
LanguageTool finds no fault (in one version also BLEU, BERTScore and ROUGE); here rules of ours
decide, so that scores of the five text tasks are to be compared with each other alone.
"""

from collections.abc import Callable
from typing import Any

from dlm.data import Example
from dlm.evaluation import rouge
from dlm.evaluation.tasks import lists, puzzles, sentences

COPIED = 0.6  # of a sentence's pairs of words that its paraphrase may hold (ROUGE-2's recall)
SHORTER = 0.5  # of the words of a talk that its summary may have


def grade(example: Example, text: str) -> float:
  """1.0 if a text answers an `Example` of the source parallel_bench, else 0.0."""
  return float(RULES[example.meta["type"]](text, example.meta["answer"]))


def listed(text: str, answer: str) -> bool:
  return lists.list_match(lists.parse_list(text), lists.parse_list(answer))


def unless_told(rule: Callable[..., bool], *fields: str) -> Callable[[str, Any], bool]:
  """One answer is right where it is a string; else `rule` takes the found list and these fields."""

  def right(text: str, answer: Any) -> bool:
    if isinstance(answer, str):
      return listed(text, answer)
    return rule(lists.parse_list(text), *(answer[field] for field in fields))

  return right


def paraphrased(text: str, answer: dict[str, Any]) -> bool:
  """A good sentence that holds every fact and is not a copy."""
  copied = rouge.recall_n(text, answer["text"], 2)
  return copied <= COPIED and holds_facts(text, answer) and sentences.well_formed(text)


def summed_up(text: str, answer: dict[str, Any]) -> bool:
  """Good sentences that hold every fact in at most half the words."""
  most = SHORTER * len(answer["text"].split())
  return len(text.split()) <= most and holds_facts(text, answer) and sentences.well_formed(text)


def holds_facts(text: str, answer: dict[str, Any]) -> bool:
  """Of each fact one of its words, whatever its ending."""
  said = set(rouge.words(text))
  return all(any(said & {*rouge.words(word)} for word in fact) for fact in answer["facts"])


RULES: dict[str, Callable[[str, Any], bool]] = {
  **dict.fromkeys(("copy", "reverse", "sort", "repeat", "rec_cumsum"), listed),
  "shuffle": unless_told(lists.list_shuffle, "input"),
  "insert": unless_told(lists.random_insert, "input", "word"),
  "remove": unless_told(lists.random_remove, "input"),
  "replace": unless_told(lists.random_replace, "input", "word"),
  "latin_square": lambda text, answer: puzzles.latin_square(text, answer["symbols"]),
  "sudoku": puzzles.sudoku,
  "domino": lambda text, answer: puzzles.domino(text, answer["length"], answer["start"]),
  "math_op": lambda text, answer: puzzles.arithmetic(text, int(answer["result"]), strict=True),
  "words_to_sentence": lambda text, answer: (
    sentences.words_included(text, answer["words"])["score"] == 1
    and len(sentences.split(text)) == 1
  ),
  "paraphrase": paraphrased,
  "summary": summed_up,
}
