"""Trees of single lines, what they share, and which tokens that releases."""

import importlib.util

import numpy as np
import pytest

from dlm.data.tokenizers import ByteTokenizer
from dlm.difftester.languages import parser_of, python
from dlm.difftester.release import agreed, code_lines, groups
from dlm.difftester.trees import LITERAL, Node, merge, shape_of, shared

TREE_SITTER = importlib.util.find_spec("tree_sitter") is not None
needs_tree_sitter = pytest.mark.skipif(not TREE_SITTER, reason="tree-sitter is not installed")


def leaves(node: Node) -> list[Node]:
  return [node] if not node.children else [leaf for c in node.children for leaf in leaves(c)]


def in_common(line: str, *others: str, parse=python) -> str:
  """The line with '_' for every character that the others do not confirm."""
  shape = shape_of(parse(line))
  for other in others:
    shape = merge(shape, shape_of(parse(other)))
  kept = [False] * len(line)
  for leaf in shared(shape, parse(line)):
    kept[leaf.start : leaf.end] = [True] * (leaf.end - leaf.start)
  return "".join(c if k or c == " " else "_" for c, k in zip(line, kept, strict=True))


@pytest.mark.parametrize(
  "line",
  [
    "assert add(1, 2) == 3", "  self.assertEqual(f('a'), [x for x in y if x])", "if x:", "else:",
    "elif a and b:", "try:", "except ValueError as e:", "finally:", "for i in range(3):",
    "while True: pass", "with open(p) as f, g():", "def test_a(self, b=1, *c, **d) -> int:",
    "class T(unittest.TestCase):", "@pytest.mark.parametrize('a', [1])", "case [a, *_]:",
    "import numpy as np", "from a.b import c as d", "return lambda x: -x", "x = é + f'{y}' # z",
    "async def f():", "a.b[c:d] **= not e", "print(f'{a!r:>{w}}', end='')", "x: int = None",
  ],
)  # fmt: skip
def test_every_word_and_sign_is_a_leaf_at_its_place(line):
  found = leaves(python(line))
  assert [leaf.start for leaf in found] == sorted(leaf.start for leaf in found)
  covered = np.zeros(len(line), int)
  for leaf in found:
    covered[leaf.start : leaf.end] += 1
    assert leaf.kind == LITERAL or leaf.text == line[leaf.start : leaf.end]
  code = line.split("#")[0]  # a comment is no code
  assert (covered <= 1).all()
  assert [c for c, n in zip(code, covered, strict=False) if not n and not c.isspace()] == []


@pytest.mark.parametrize("line", ["assert f(1", "x = = 1", "'open", "", "   ", "# note", "\0", ")"])
def test_what_is_no_whole_line_of_python_has_no_tree(line):
  node = python(line)
  assert node is None or not shape_of(node).says_something()


def test_two_lines_share_what_they_spell_alike():
  first = "assert add(1, 2) == 3"
  assert in_common(first, "assert add(4, x) == 'a'") == "assert add(_, __ == _"
  assert in_common(first, "assert add(7, 8) == 9") == "assert add(_, _) == _"
  assert in_common(first, "assert sub(7, 8) == 9") == "assert ___(_, _) == _"
  assert in_common(first, "assert add(7) == 9") == "assert add(__ __ == _"
  assert in_common(first, "x = add(1, 2)") == "______ ______ __ __ _"


def test_a_hole_never_closes_again():
  first, second = "f(a, b)", "f(c, b)"
  assert in_common(first, second, first) == in_common(first, second) == "f(_, b)"


LINES = """Here is a test:
```python
assert add(1, 2) == 3
assert add(4, 5) == 9
```
assert add(0, 0) == 0
```java
assert add(1, 1) == 2;
"""


def test_code_stands_between_fences_of_its_language():
  assert [line.text for line in code_lines(0, LINES, "python")] == [
    "assert add(1, 2) == 3\n",
    "assert add(4, 5) == 9\n",
  ]
  assert [line.text for line in code_lines(0, LINES, "java")] == ["assert add(1, 1) == 2;\n", ""]


def test_lines_of_digits_and_brackets_make_no_group():
  lines = code_lines(0, "```python\n(1, 2)\n(1, 2)\nf(1)\nx = 1\n", "python")
  assert groups(lines, python) == []


def released(texts, masked=None):
  """Characters released, as a string a sample; `masked`: '?' marks what is a candidate."""
  tokenizer = ByteTokenizer()
  width = max(map(len, texts))
  tokens = np.stack([np.pad(tokenizer.encode(t), (0, width - len(t))) for t in texts])
  marks = masked or ["?" * len(t) for t in texts]
  masked_BxL = np.stack([np.array(list(m.ljust(width))) == "?" for m in marks])
  out = agreed(
    tokens, masked_BxL, spell=lambda i: tokenizer.decode([i]), parse=python, language="python"
  )
  return [
    "".join(c if r else "_" for c, r in zip(t, row, strict=False))
    for t, row in zip(texts, out, strict=True)
  ]


def test_tokens_are_released_that_another_sample_confirms():
  texts = [f"```python\nassert add({i}, 2) == {i + 2}\nx{i} = {i}\n" for i in range(3)]
  for row in released(texts):
    assert row == "_" * 10 + "assert_add(_,__)_==___" + "___=___"


def test_a_line_that_is_written_confirms_nothing_and_a_single_line_is_not_enough():
  text = "```python\nassert add(1, 2) == 3\n"
  assert set(released([text])[0]) == {"_"}
  assert set("".join(released([text, text], ["?" * len(text), ""]))) == {"_"}


def test_a_character_cut_into_tokens_is_not_released():
  """Its halves are spelled U+FFFD, of which no name is made; the bytes around it may go."""
  tokenizer = ByteTokenizer()
  tokens = np.stack([tokenizer.encode("```python\né = add(1)\n")] * 2)
  everywhere = np.ones(tokens.shape, bool)
  out = agreed(
    tokens, everywhere, spell=lambda i: tokenizer.decode([i]), parse=python, language="python"
  )
  assert not out.any()


@needs_tree_sitter
@pytest.mark.parametrize(
  ("language", "first", "second", "want"),
  [
    ("java", "eq(3, add(1, 2));", "eq(7, add(3, 4));", "eq(_, add(_, _));"),
    ("java", "int y = f(1);", "int z = f(2);", "int _ = f(_);"),
    ("cpp", 'EQ(add(1, 2), "é");', 'EQ(add(5, 6), "f");', "EQ(add(_, _), ___);"),
    ("cpp", "int y = add(1);", "int z = add(2);", "int _ = add(_);"),
  ],
)  # fmt: skip
def test_java_and_cpp_by_tree_sitter(language, first, second, want):
  parse = parser_of(language)
  assert in_common(first, second, parse=parse) == want


@pytest.mark.skipif(TREE_SITTER, reason="tree-sitter is installed")
def test_without_tree_sitter_the_error_says_what_to_install():
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'dlm\[difftester\]'"):
    parser_of("java")


def test_an_unknown_language_is_refused():
  with pytest.raises(ValueError, match="python, java, cpp"):
    parser_of("cobol")
