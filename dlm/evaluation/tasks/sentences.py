"""Graders of sentences as ParallelBench (2510.04767) defines them, and of what is well formed.

The authors ask LanguageTool, a server in Java, whether a text is good English. `well_formed` is the
rule that stands for it here: it knows how a sentence looks and nothing of syntax, so scores that
use it are to be compared with each other alone. Every grader takes another rule in its place.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence

Grammar = Callable[[str], bool]

ARTICLES = {"an": "a", "An": "A"}  # one word for these graders
TWICE = frozenset({"had", "that"})  # words that may follow themselves
# What an article may stand before although its first letter says otherwise.
SOUNDS_AS_VOWEL = ("hour", "honest", "honour", "honor", "heir")
SOUNDS_AS_CONSONANT = ("uni", "use", "usu", "euro", "one", "once", "ut", "ew")


def well_formed(text: str) -> bool:
  """Is a text made of sentences: capital first, full stop last, and no slip that rules can see?

  A sentence has at least three words. Slips: a word twice in a row, "a" before a vowel and "an"
  before none, a line break within, spaces before punctuation, open brackets or quotation marks.
  """
  return _balanced(text) and all(map(_is_sentence, split(text)))


def split(text: str) -> list[str]:
  """At the white space that follows the end of a sentence."""
  return re.split(r"(?<=[.!?])[\"')]*\s+", text.strip())


def _is_sentence(text: str) -> bool:
  words = re.findall(r"[\w'’-]+", text)
  first = text.lstrip("\"'(")[:1]
  if len(words) < 3 or not (first.isupper() or first.isdecimal()):
    return False
  if not re.search(r"[.!?][\"')]*$", text) or re.search(r"\s[,.;:!?]|\s\s|\n|[,;:]{2}", text):
    return False
  for a, b in itertools.pairwise(words):
    if a.lower() == b.lower() and a.lower() not in TWICE and not re.search(rf"\b{a}[,.;:]", text):
      return False
    if a.lower() in ("a", "an") and b[0].isalpha() and (a.lower() == "an") != _vowel(b.lower()):
      return False
  return True


def _vowel(word: str) -> bool:
  if word.startswith(SOUNDS_AS_VOWEL):
    return True
  return word[0] in "aeiou" and not word.startswith(SOUNDS_AS_CONSONANT)


def _balanced(text: str) -> bool:
  return text.count('"') % 2 == 0 and all(text.count(a) == text.count(b) for a, b in ("()", "[]"))


def words_of(sentence: str) -> list[str]:
  """Without full stops and commas; "an" is "a"."""
  words = sentence.replace(".", "").replace(",", "").split()
  return [ARTICLES.get(word, word) for word in words]


def words_included(text: str, words: Sequence[str], grammar: Grammar = well_formed) -> dict:
  """Every word stands in a text, also as part of a longer one, and the text is good English."""
  included, good = all(word in text for word in words), grammar(text)
  return {
    "inclusion_score": float(included),
    "grammar_score": float(good),
    "score": float(included and good),
  }


def starts_with(text: str, start: str, grammar: Grammar = well_formed) -> dict:
  """A text begins as it is told, and is good English."""
  starts, good = text.strip().strip('"').startswith(start), grammar(text)
  return {
    "grammar_score": float(good),
    "startswith_score": float(starts),
    "score": float(starts and good),
  }


def occurrences_replaced(text: str, given: str, word: str, count: int | None) -> dict:
  """`word` gave way to a new word, each time to another one, and the rest stayed ("score").

  `count`: so many times; None: every time; below 0: all but so many. Loose: the rest may change.
  """
  ours, theirs = words_of(text), words_of(given)
  if len(ours) != len(theirs):
    return {"score": 0.0, "score_loose": 0.0}
  places = [new for new, old in zip(ours, theirs, strict=True) if old == word]
  replaced = [new for new in places if new != word]
  others = all(new == old for new, old in zip(ours, theirs, strict=True) if old != word)
  wanted = len(places) if count is None else count if count >= 0 else len(places) + count
  right = len(replaced) == wanted and len(set(replaced)) == len(replaced)
  return {"score": float(right and others), "score_loose": float(right)}


# ---------------------------------------------------------------------------------------------
# Formal languages


def json_syntax(text: str) -> bool:
  """Is a text JSON? Of a text with a fence, what that holds."""
  try:
    json.loads(_fenced(text, "json"))
  except (ValueError, RecursionError):
    return False
  return True


def matches(text: str, pattern: str) -> bool:
  return re.fullmatch(pattern, text.strip()) is not None


def regex_tells(text: str, right: Sequence[str], wrong: Sequence[str]) -> bool:
  """Is a text, or its fence, a regular expression that matches all of `right`, none of `wrong`?"""
  try:
    pattern = re.compile(_fenced(text, "regex"))
  except (re.error, OverflowError, RecursionError):
    return False
  return all(map(pattern.fullmatch, right)) and not any(map(pattern.fullmatch, wrong))


def _fenced(text: str, language: str) -> str:
  """From the first fence on, of this language if there is one, to the next."""
  fence = f"```{language}"
  return text.split(fence if fence in text else "```", 1)[-1].strip().split("```")[0].strip()
