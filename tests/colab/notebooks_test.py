"""What holds of every notebook: short, logic imported, no output, links that lead somewhere."""

import ast
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from tests.colab.notebooks import NOTEBOOKS, code, read

CELLS, LINES, FUNCTION = 25, 14, 5


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_short_and_imports_its_logic(name):
  notebook = read(name)
  nbformat.validate(notebook)
  assert len(notebook.cells) <= CELLS
  for cell in code(notebook):
    assert len(cell.source.splitlines()) <= LINES, cell.source
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
      assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), cell.source
      if isinstance(node, ast.FunctionDef):
        assert node.end_lineno - node.lineno < FUNCTION, cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_stripped_and_runs_on_any_python3_kernel(name):
  notebook = read(name)
  assert [cell.execution_count for cell in code(notebook)] == [None] * len(code(notebook))
  assert [cell.outputs for cell in code(notebook)] == [[]] * len(code(notebook))
  assert notebook.metadata.kernelspec.name == "python3"
  assert 'if "google.colab" in sys.modules:' in code(notebook)[0].source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name):
  text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
  links = re.findall(r"\]\((\.\./[^)]+)\)", text)
  assert links
  assert [link for link in links if not (NOTEBOOKS[name].parent / link).exists()] == []
