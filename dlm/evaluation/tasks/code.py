"""Programs within what a model wrote, and pass@k of those that pass their tests.

The rules of the harnesses that papers report, named by them: Fast-dLLM's clean-up (2505.22618),
OpenCompass as LLaDA's authors use it.
"""

import ast
import itertools
import math
import re
import warnings

LONGEST = 100  # lines of a text that are looked through
BEGIN = (r"\[BEGIN\]", "BEGIN")
DONE = (r"\[DONE\]", "DONE")
# Where OpenCompass looks for a program of MBPP: the first that fits.
MBPP_PLACES = tuple(
  re.compile(pattern, re.DOTALL)
  for pattern in (
    *(
      rf"{begin}\s*{inside}\s*{done}"
      for inside, done, begin in itertools.product(("'(.*)'", "'(.*)", "(.*)"), DONE, BEGIN)
    ),
    *(
      rf"{fence}\s*(.*)\s*{end}"
      for end, fence in itertools.product(("```", "$"), ("```python", "```"))
    ),
    r"(.*)\s*```.*",
    r"\[BEGIN\]\s*'(.*)",
    r"\[BEGIN\](.*)",
    r"'(.*)'\s*\[DONE\]",
  )
)


def pass_at_k(n: int, right: int, k: int) -> float:
  """Codex (2107.03374): the chance that one of `k` drawn from `n` samples is right, unbiased."""
  if not 0 <= right <= n or not 1 <= k <= n:
    raise ValueError(f"pass_at_k: {right=} must lie in 0..{n=}, {k=} in 1..{n=}")
  return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def function_body(text: str) -> str:
  """The indented lines that a text begins with, of models that continue a function's head."""
  if text.startswith("   ") and not text.startswith("    "):
    text = f" {text}"
  text = text.partition("\n\n\n")[0].partition("\n```")[0]
  return "\n".join(itertools.takewhile(lambda line: line[:1] in ("", " "), text.split("\n")))


def mbpp_program(text: str) -> str:
  """Between [BEGIN] and [DONE], in a fence, or whatever comes nearest to that."""
  for place in MBPP_PLACES:
    if found := place.search(text):
      text = found[1]
      break
  text = re.split(r"'?\s*\[?DONE\]?", text.partition("```")[0])[0].replace("\\_", "_").strip()
  text = text.removeprefix("'")
  return text.removesuffix("'")


def fast_dllm_program(prompt: str, text: str, name: str) -> str:
  """The prompt and the first python fence of a text, cleaned up: what function `name` needs."""
  said = text.split("```python\n", 1)[-1].partition("```")[0]
  return reachable(f"{prompt}\n{said}", name)


def reachable(text: str, name: str) -> str:
  """Imports, and the definitions that `name` reaches, of the longest stretch of a text that parses.

  As in Fast-dLLM's code, functions that return nothing are dropped, and what is only used through
  an attribute (A of A.k) does not count as used.
  """
  text = re.sub("\r\n?", "\n", text.replace("\t", "    ")).strip()
  imports, found = [], {}
  for node in _longest_program(text.splitlines()[:LONGEST]).body:
    match node:
      case ast.Import() | ast.ImportFrom():
        imports.append(node)
      case ast.FunctionDef() if not any(isinstance(each, ast.Return) for each in ast.walk(node)):
        pass
      case ast.FunctionDef() | ast.ClassDef():
        found[node.name] = node
      case ast.Assign(targets=[ast.Name(id=target), *_]):
        found[target] = node
  needed, waiting = set(), {name}
  while waiting:
    each = waiting.pop()
    needed.add(each)
    if each in found:
      waiting |= _names(found[each]) - needed
  kept = [node for each, node in found.items() if each in needed]
  return "\n".join(map(ast.unparse, [*imports, *kept]))


def _names(node: ast.AST) -> set[str]:
  """Names, and names of attributes, below a node."""
  found = set()
  for child in ast.iter_child_nodes(node):
    match child:
      case ast.Name(id=name) | ast.Attribute(attr=name):
        found.add(name)
      case _:
        found |= _names(child)
  return found


def _longest_program(lines: list[str]) -> ast.Module:
  """Of the stretches that parse, the first of most lines that are not blank."""
  best, size = ast.Module([], []), 0
  filled = [0, *itertools.accumulate(bool(line.strip()) for line in lines)]
  for i, j in itertools.combinations(range(len(lines) + 1), 2):
    if filled[j] - filled[i] > size and (tree := _parsed("\n".join(lines[i:j]))):
      best, size = tree, filled[j] - filled[i]
  return best


def _parsed(text: str) -> ast.Module | None:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # escapes that a string does not know
    try:
      return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
      return None
