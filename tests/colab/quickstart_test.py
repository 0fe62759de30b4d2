"""The notebook as a stranger runs it, top to bottom in a kernel of its own, at its tiny size."""

import ast
import os
import pathlib
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "colab" / "quickstart.ipynb"
CELLS, LINES, FUNCTION = 25, 14, 5


def read() -> nbformat.NotebookNode:
  return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_is_short_and_imports_its_logic():
  notebook = read()
  nbformat.validate(notebook)
  assert len(notebook.cells) <= CELLS
  for cell in code(notebook):
    assert len(cell.source.splitlines()) <= LINES, cell.source
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
      assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), cell.source
      if isinstance(node, ast.FunctionDef):
        assert node.end_lineno - node.lineno < FUNCTION, cell.source


def test_is_stripped_and_runs_on_any_python3_kernel():
  notebook = read()
  assert [cell.execution_count for cell in code(notebook)] == [None] * len(code(notebook))
  assert [cell.outputs for cell in code(notebook)] == [[]] * len(code(notebook))
  assert notebook.metadata.kernelspec.name == "python3"
  assert 'if "google.colab" in sys.modules:' in code(notebook)[0].source


def test_links_lead_somewhere():
  text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
  links = re.findall(r"\]\((\.\./[^)]+)\)", text)
  assert links
  assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> str:
  """All that the notebook prints and shows, as text; pictures as their size in the text."""
  home = str(tmp_path_factory.mktemp("home"))
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
  own = {name: home for name in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR")}
  kernel = own | {
    "DLM_TINY": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
  }
  notebook = read()
  client = NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(NOTEBOOK.parent)}},  # where Jupyter starts it
  )
  with pytest.MonkeyPatch.context() as patch:
    for name, value in own.items():
      patch.setenv(name, value)
    client.execute(env=os.environ | kernel)
  shown = [output for cell in code(notebook) for output in cell.outputs]
  return "\n".join(output.get("text") or output.data["text/plain"] for output in shown)


def test_the_loss_falls(outputs):
  losses = [float(loss) for loss in re.findall(r"  loss (\d+\.\d+)", outputs)]
  assert len(losses) > 2
  assert losses[-1] < losses[0] - 1


def test_likelihood_is_told_with_its_error(outputs):
  nats, error = re.search(r"at most (\d+\.\d+) \+- (\d+\.\d+) nats per token", outputs).groups()
  assert float(nats) > 0.196  # the entropy of the text
  assert 0 < float(error) < float(nats)


def test_prompts_are_completed_and_holes_filled(outputs):
  assert len(re.findall(r"\[\d+ tokens, \d+ forwards, ", outputs)) == 2
  for last in "abcd":
    hole = rf"\[\[6\]\]{last}  ->  shf a b c d = .*?{last}$"  # what fills it may hold line breaks
    assert re.search(hole, outputs, re.M | re.S)


def test_policies_are_compared_and_drawn(outputs):
  table = re.findall(r"│ (reverse|shuffle) *│ (\w+) ", outputs)
  policies = ("confident", "random", "threshold")
  assert table == [(task, policy) for task in ("reverse", "shuffle") for policy in policies]
  assert re.findall(r"<Figure size .* with (\d) Axes", outputs) == ["1", "2"]
