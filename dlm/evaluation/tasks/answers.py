"""The answer within what a model wrote, by the rules of the harnesses that papers report.

Their rules differ, so a score says which one it is by: `lm_eval_*` of lm-evaluation-harness,
`opencompass_*` of OpenCompass as LLaDA's authors use it, `boxed` and `equivalent` of d1.
"""

import re
from collections.abc import Sequence

INVALID = "[invalid]"  # lm-evaluation-harness: no answer was found
LM_EVAL_STRICT = {
  "gsm8k": re.compile(r"#### (\-?[0-9\.\,]+)"),
  "gsm8k-cot": re.compile(r"The answer is (\-?[0-9\.\,]+)."),
}
LM_EVAL_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
LM_EVAL_IGNORED = (",", r"\$", "(?s).*#### ", r"\.$")
NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
  """What stands before each stop string, applied in their order, as LLaDA's harness does."""
  for stop in stops:
    text = text.partition(stop)[0]
  return text


# ---------------------------------------------------------------------------------------------
# GSM8K


def lm_eval_strict(text: str, task: str = "gsm8k") -> str:
  """The first answer in the form that the worked examples show."""
  found = LM_EVAL_STRICT[task].search(text)
  return found[1].strip() if found else INVALID


def lm_eval_flexible(text: str) -> str:
  """The last number of a text, with what stands about it."""
  found = LM_EVAL_NUMBER.findall(text)
  return found[-1].strip() if found else INVALID


def lm_eval_match(answer: str, solution: str) -> bool:
  """Equal but for case, commas, dollar signs, a last full stop and what precedes "#### "?"""
  for pattern in LM_EVAL_IGNORED:
    answer, solution = (re.sub(pattern, "", each) for each in (answer, solution))
  return answer.lower() == solution.lower()


def opencompass_number(text: str, base: bool = False) -> str:
  """The last number before another "Question:"; of base models, one that "The answer is" tells."""
  told = re.search(r"The Answer is[:\s]*(-?\d+(?:\.\d+)?)", text, re.IGNORECASE) if base else None
  if told:
    return told[1]
  found = NUMBER.findall(text.partition("Question:")[0])
  return found[-1] if found else "NULL"


def opencompass_match(answer: str, gold: str) -> bool:
  if answer == gold:
    return True
  try:
    return abs(float(answer) - int(gold)) < 1e-6
  except ValueError:
    return False


def gold_number(solution: str) -> str:
  """What a solution of GSM8K's files says after its "#### "."""
  return solution.split("#### ")[1].replace(",", "")


def hash_number(text: str) -> float | None:
  """The first number after "####", with a dollar sign or without."""
  found = re.search(r"####\s*\$?([\d,]+(?:\.\d+)?)", text)
  digits = found[1].replace(",", "") if found else ""
  return float(digits) if digits else None


# ---------------------------------------------------------------------------------------------
# MATH


def tagged(text: str) -> str | None:
  """What the last <answer> holds, without white space."""
  found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
  return re.sub(r"\s", "", found[-1]) if found else None


def boxed(text: str) -> str:
  r"""The content of the last \boxed{...}, by counting braces; a text without one is returned whole.

  "\boxed 5$" boxes up to the dollar sign.
  """
  if "\\boxed " in text:
    return text.rpartition("\\boxed ")[2].partition("$")[0]
  start = text.rfind("\\boxed")
  start = text.rfind("\\fbox") if start < 0 else start
  if start < 0:
    return text
  depth = 0
  for at in range(start, len(text)):
    depth += (text[at] == "{") - (text[at] == "}")
    if text[at] == "}" and depth == 0:
      box = text[start : at + 1]
      return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else box
  return text


def equivalent(answer: str, reference: str) -> bool:
  """Are two answers of MATH the same once both are written in one way?

  Args that cannot be brought into it must be equal as they stand.
  """
  try:
    return normal_form(answer) == normal_form(reference)
  except ValueError:
    return answer == reference


def normal_form(text: str) -> str:
  r"""MATH's one way of writing: \frac{a}{b}, \sqrt{a}, no units, degrees, percent, dollars, spaces.

  Raises:
    ValueError: a command that lacks its argument.
  """
  for old, new in (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""),
    ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
  ):  # fmt: skip
    text = text.replace(old, new)
  if text.count("\\text{ ") > 1:
    raise ValueError(f"two units in {text!r}")
  text = text.partition("\\text{ ")[0]
  for old, new in (("\\%", ""), (" .", " 0."), ("{.", "{0.")):
    text = text.replace(old, new)
  if text.startswith("."):
    text = f"0{text}"
  if text.count("=") == 1 and len(text.partition("=")[0]) <= 2:  # x = 3
    text = text.partition("=")[2]
  text = _braced(text, "\\sqrt", 1).replace(" ", "")
  text = _braced(text, "\\frac", 2)
  if text == "0.5":
    return "\\frac{1}{2}"
  if text.count("/") != 1:
    return text
  a, b = text.split("/")
  a, b = int(a), int(b)
  return f"\\frac{{{a}}}{{{b}}}" if text == f"{a}/{b}" else text


def _braced(text: str, command: str, arguments: int) -> str:
  r"""Braces about single characters, unless the first has its own: \sqrt3, \frac12, \frac1{2}."""
  head, *rest = text.split(command)
  done = [head]
  for part in rest:
    if not part:
      raise ValueError(f"{command} lacks its argument in {text!r}")
    if part[0] != "{":
      if len(part) < arguments:
        return text
      size = arguments - (arguments == 2 and part[1] == "{")
      part = "".join(f"{{{letter}}}" for letter in part[:size]) + part[size:]
    done.append(part)
  return command.join(done)
