"""Notebooks as a stranger runs them, top to bottom in a kernel of its own, at their tiny size."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colab").glob("*.ipynb"))}


def read(name: str) -> nbformat.NotebookNode:
  return nbformat.read(NOTEBOOKS[name], as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(name: str, home: str) -> str:
  """All that the notebook prints and shows, as text; pictures as their size in the text."""
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
  own = {name: home for name in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR")}
  kernel = own | {
    "DLM_TINY": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
  }
  notebook = read(name)
  client = NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(NOTEBOOKS[name].parent)}},  # where Jupyter starts it
  )
  with pytest.MonkeyPatch.context() as patch:
    for variable, value in own.items():
      patch.setenv(variable, value)
    client.execute(env=os.environ | kernel)
  shown = [output for cell in code(notebook) for output in cell.outputs]
  return "\n".join(output.get("text") or output.data["text/plain"] for output in shown)
