"""d1's rewards of GSM8K (2504.12216): an answer in tags, behind reasoning in tags.

As in its code, "." is no line break in the two patterns: `format_strict` wants a line of reasoning
and one of answer, each between its tags on lines of their own, and `format_soft`, which looks for
the tags anywhere at the start, does not take that very layout.
"""

import re

from dlm.rewards.written import Written

STRICT = re.compile(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$")
SOFT = re.compile(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>")
TAGS = ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")
RIGHT, FORM, TAG, CHARACTER = 2.0, 0.5, 0.125, 0.001


def last_answer(text: str) -> str:
  """What stands behind the last <answer>, up to </answer>; the whole text where there is no tag."""
  return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def tagged_answer(written: Written) -> float:
  """2.0 if the answer is the data's, letter by letter: "4.0" is not "4"."""
  return RIGHT * (last_answer(written.text) == written.answer)


def tagged_integer(written: Written) -> float:
  """0.5 if the answer is digits alone."""
  return FORM * last_answer(written.text).isdigit()


def format_strict(written: Written) -> float:
  return FORM * (STRICT.match(written.text) is not None)


def format_soft(written: Written) -> float:
  return FORM * (SOFT.match(written.text) is not None)


def xml_count(written: Written) -> float:
  """0.125 for each of four tags that is there once on its line, less for what follows the last."""
  return xml_score(written.text, "\n</answer>\n")


def xml_count_from_answer(written: Written) -> float:
  """SPG's `xml_count`, which takes the answer itself for what follows."""
  return xml_score(written.text, "\n<answer>\n")


def xml_score(text: str, last: str) -> float:
  """Characters behind `last` cost 0.001 each, and again those behind the closing tag's line."""
  score = TAG * sum(text.count(tag) == 1 for tag in TAGS)
  if text.count(TAGS[2]) == 1:
    score -= CHARACTER * len(text.split(last)[-1])
  if text.count(TAGS[3]) == 1:
    score -= CHARACTER * (len(text.split(TAGS[3])[-1]) - 1)
  return score
