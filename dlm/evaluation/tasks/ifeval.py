"""IFEval (2311.07911): did a text follow each instruction that a program can check?

Sentences and words are told apart by rules here and by nltk in the authors' code, so counts of
sentences and of words in capitals may differ from theirs by an abbreviation or a hyphen.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from dlm.data.install import require
from dlm.evaluation.tasks import sentences

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def follows(text: str, instructions: list[str], arguments: list[Mapping[str, Any]]) -> bool:
  """All of them, by a text that says something: the "strict" score of a prompt."""
  return bool(text.strip()) and all(
    RULES[name](text, {key: value for key, value in given.items() if value is not None})
    for name, given in zip(instructions, arguments, strict=True)
  )


def check(instructions: list[str]) -> None:
  """ValueError where one is unknown; ModuleNotFoundError where a language cannot be told."""
  if unknown := set(instructions) - set(RULES):
    raise ValueError(f"ifeval: unknown instruction {min(unknown)!r}; known: {', '.join(RULES)}")
  if LANGUAGES & set(instructions):
    require("langdetect", "tasks")


def _related(found: int, wanted: int, relation: str) -> bool:
  return found < wanted if relation == "less than" else found >= wanted


def _is_in(text: str, language: str) -> bool:
  package = require("langdetect", "tasks")
  package.DetectorFactory.seed = 0
  try:
    return package.detect(text) == language
  except package.LangDetectException:  # nothing to tell it by; taken for right, as the authors do
    return True


def _times(pattern: str, text: str, flags: re.RegexFlag = re.NOFLAG) -> int:
  return len(re.findall(pattern, text, flags))


def _paragraphs(text: str, of: Mapping[str, Any]) -> bool:
  """Between asterisks; an empty one is none at either end, and a fault between others."""
  found = re.split(r"\s?\*\*\*\s?", text)
  inner = [part for i, part in enumerate(found) if part.strip() or 0 < i < len(found) - 1]
  return all(part.strip() for part in inner) and len(inner) == of["num_paragraphs"]


def _first_word(text: str, of: Mapping[str, Any]) -> bool:
  """Of the n-th paragraph, between empty lines."""
  parts = text.split("\n\n")
  at, filled = of["nth_paragraph"] - 1, [part for part in parts if part.strip()]
  if at >= len(filled) or len(filled) != of["num_paragraphs"] or not parts[at].strip():
    return False
  word = parts[at].split()[0].lstrip("'").lstrip('"')
  return re.split(r"[.,?!'\"]", word)[0].lower() == of["first_word"].lower()


def _postscript(text: str, of: Mapping[str, Any]) -> bool:
  marker = of["postscript_marker"]
  known = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
  pattern = known.get(marker, rf"\s*{re.escape(marker.lower())}.*$")
  return re.search(pattern, text.lower(), re.MULTILINE) is not None


def _bullets(text: str, of: Mapping[str, Any]) -> bool:
  stars = _times(r"^\s*\*[^\*].*$", text, re.MULTILINE)
  return stars + _times(r"^\s*-.*$", text, re.MULTILINE) == of["num_bullets"]


def _highlights(text: str, of: Mapping[str, Any]) -> bool:
  once = re.findall(r"\*[^\n\*]*\*", text)
  twice = re.findall(r"\*\*[^\n\*]*\*\*", text)
  filled = [part for part in once + twice if part.strip("*").strip()]
  return len(filled) >= of["num_highlights"]


def _sections(text: str, of: Mapping[str, Any]) -> bool:
  return _times(rf"\s?{re.escape(of['section_spliter'])}\s?\d+\s?", text) >= of["num_sections"]


def _json(text: str, _: Mapping[str, Any]) -> bool:
  text = text.strip()
  for mark in ("```json", "```Json", "```JSON", "```"):
    text = text.removeprefix(mark)
  try:
    json.loads(text.removesuffix("```").strip())
  except (ValueError, RecursionError):
    return False
  return True


def _two_responses(text: str, _: Mapping[str, Any]) -> bool:
  parts = text.split("******")
  filled = [part.strip() for i, part in enumerate(parts) if part.strip() or 0 < i < len(parts) - 1]
  return len(filled) == 2 and all(filled) and filled[0] != filled[1]


def _quoted(text: str, _: Mapping[str, Any]) -> bool:
  text = text.strip()
  return len(text) > 1 and text[0] == text[-1] == '"'


RULES: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
  "keywords:existence": lambda text, of: all(
    re.search(word, text, re.IGNORECASE) for word in of["keywords"]
  ),
  "keywords:frequency": lambda text, of: _related(
    _times(of["keyword"], text, re.IGNORECASE), of["frequency"], of["relation"]
  ),
  "keywords:forbidden_words": lambda text, of: (
    not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in of["forbidden_words"])
  ),
  "keywords:letter_frequency": lambda text, of: _related(
    text.lower().count(of["letter"].lower()), of["let_frequency"], of["let_relation"]
  ),
  "language:response_language": lambda text, of: _is_in(text, of["language"]),
  "length_constraints:number_sentences": lambda text, of: _related(
    len(sentences.split(text)), of["num_sentences"], of["relation"]
  ),
  "length_constraints:number_paragraphs": _paragraphs,
  "length_constraints:number_words": lambda text, of: _related(
    _times(r"\w+", text), of["num_words"], of["relation"]
  ),
  "length_constraints:nth_paragraph_first_word": _first_word,
  "detectable_content:number_placeholders": lambda text, of: (
    _times(r"\[.*?\]", text) >= of["num_placeholders"]
  ),
  "detectable_content:postscript": _postscript,
  "detectable_format:number_bullet_lists": _bullets,
  "detectable_format:constrained_response": lambda text, _: any(said in text for said in ANSWERS),
  "detectable_format:number_highlighted_sections": _highlights,
  "detectable_format:multiple_sections": _sections,
  "detectable_format:json_format": _json,
  "detectable_format:title": lambda text, _: any(
    title.strip() for title in re.findall(r"<<([^\n]+)>>", text)
  ),
  "combination:two_responses": _two_responses,
  "combination:repeat_prompt": lambda text, of: (
    text.strip().lower().startswith(of["prompt_to_repeat"].strip().lower())
  ),
  "startend:end_checker": lambda text, of: (
    text.strip().strip('"').lower().endswith(of["end_phrase"].strip().lower())
  ),
  "startend:quotation": _quoted,
  "change_case:capital_word_frequency": lambda text, of: _related(
    sum(word.isupper() for word in re.findall(r"[\w'-]+", text)),
    of["capital_frequency"],
    of["capital_relation"],
  ),
  "change_case:english_capital": lambda text, _: text.isupper() and _is_in(text, "en"),
  "change_case:english_lowercase": lambda text, _: text.islower() and _is_in(text, "en"),
  "punctuation:no_comma": lambda text, _: "," not in text,
}
LANGUAGES = {name for name in RULES if name.startswith(("language:", "change_case:english"))}
