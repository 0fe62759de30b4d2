"""The house rules: which folder may import which, what the core may need, names of files.

An import that this test refuses usually means that a value or a protocol wants to live in
`dlm/types.py`, or that a function wants to be handed in. Change the table only together with the
map in `dlm/__init__.py`.
"""

import ast
import dataclasses
import fnmatch
import graphlib
import importlib.util
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("kernels_pallas", "dlm", "experiments", "configs", "colab")
BANNED = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one folder (or file) may import besides itself and the standard library."""

  ours: tuple[str, ...] = ()
  packages: tuple[str, ...] = ()
  lazy: tuple[str, ...] = ()  # packages too, but within a function: many machines lack them


WORDS = ("dlm.types", "dlm.masks", "dlm.edits", "dlm.facts", "dlm.seeds")
BELOW_THE_PATHS = (
  *WORDS,
  "dlm.files",
  "kernels_pallas",
  "dlm.diffusion",
  "dlm.objectives",
  "dlm.sampling",
  "dlm.parallel",
  "dlm.data",
  "dlm.rewards",
)
PARTS = (
  *BELOW_THE_PATHS,
  "dlm.models",
  "dlm.workdir",
  "dlm.checkpoint",
  "dlm.optimizer",
  "dlm.metrics",
)

LAYERS = {
  "kernels_pallas": Layer((), ("jax",)),
  "dlm": Layer(),  # the map alone
  "dlm.types": Layer(
    ("kernels_pallas.block_attention", "kernels_pallas.token_stats"), ("jax", "flax")
  ),
  "dlm.masks": Layer(("dlm.types",), ("jax",)),
  "dlm.edits": Layer(("dlm.types",), ("jax",)),
  "dlm.facts": Layer(("dlm.types", "dlm.masks")),
  "dlm.files": Layer(),
  "dlm.seeds": Layer(),
  "dlm.waiting": Layer(),
  "dlm.named": Layer(),
  "dlm.diffusion": Layer(("dlm.types",), ("jax",)),
  "dlm.parallel": Layer(("dlm.types",), ("jax", "flax", "numpy")),
  "dlm.models": Layer((*WORDS, "kernels_pallas"), ("jax", "flax")),
  "dlm.models.moe.gate_scales": Layer((), ("numpy",)),  # draws of its legacy generator
  "dlm.models.rope": Layer((), ("numpy",)),  # in float64, whatever JAX is allowed
  "dlm.objectives": Layer((*WORDS, "dlm.diffusion", "kernels_pallas"), ("jax", "flax")),
  "dlm.sampling": Layer((*WORDS, "kernels_pallas"), ("jax", "flax", "numpy")),
  "dlm.difftester": Layer(("dlm.types", "dlm.sampling"), ("jax", "flax", "numpy")),
  "dlm.data": Layer(("dlm.seeds", "dlm.files"), ("numpy",)),
  "dlm.rewards": Layer(("dlm.data", "dlm.named"), ("numpy",)),
  "dlm.data.sandbox": Layer((), ("jinja2",)),  # a script of its own process, which nobody imports
  "dlm.weights": Layer(
    (*WORDS, "dlm.files", "dlm.checksums", "dlm.models"),
    ("jax", "flax", "numpy", "safetensors"),
    ("gguf",),
  ),
  "dlm.optimizer": Layer(("dlm.types",), ("jax", "optax")),
  "dlm.checksums": Layer(("dlm.types",), ("jax", "numpy")),
  "dlm.workdir": Layer(("dlm.files", "dlm.facts"), ("jax",)),
  "dlm.checkpoint": Layer(
    ("dlm.types", "dlm.files", "dlm.checksums", "dlm.workdir"), ("jax", "orbax")
  ),
  "dlm.metrics": Layer(("dlm.types", "dlm.files"), ("jax",), ("rich", "tensorboardX")),
  "dlm.live": Layer(("dlm.types", "dlm.data"), ("numpy", "rich")),
  "dlm.completions": Layer(
    ("dlm.files", "dlm.build", "dlm.data", "dlm.generate", "dlm.parallel", "dlm.types"), ("jax",)
  ),
  "dlm.answers": Layer(("dlm.data", "dlm.generate"), ("numpy",)),
  "dlm.command": Layer(("dlm.processes",), ("absl",)),
  "dlm.processes": Layer(("dlm.tunnel",), ("jax", "absl")),
  "dlm.tunnel": Layer((), ()),
  "dlm.build": Layer((*PARTS, "dlm.checksums", "dlm.tools", "dlm.weights"), ("jax",)),
  "dlm.preemption": Layer((), ("jax",)),
  "dlm.generate": Layer((*PARTS, "dlm.build"), ("jax", "numpy")),
  "dlm.roofline": Layer(("dlm.models.config",)),
  "dlm.programs": Layer(),
  "dlm.plan": Layer(
    (
      "dlm.build",
      "dlm.generate",
      "dlm.models",
      "dlm.parallel",
      "dlm.programs",
      "dlm.roofline",
      "dlm.train",
      "dlm.types",
      "kernels_pallas.aot",
    ),
    ("jax", "numpy"),
  ),
  "dlm.serving": Layer((*PARTS, "dlm.build", "dlm.generate"), ("jax", "flax", "numpy")),
  "dlm.serving.regular": Layer((), ("outlines_core",)),  # a script of its own process, too
  # Imported by the main alone: the engine needs no web server.
  "dlm.serving.app": Layer(("dlm.serving", "dlm.generate"), ("starlette", "uvicorn")),
  "dlm.tools": Layer(("dlm.data", "dlm.named"), (), ("bm25s",)),
  "dlm.agent": Layer(
    ("dlm.data", "dlm.generate", "dlm.parallel", "dlm.sampling", "dlm.tools", "dlm.types"),
    ("numpy",),
  ),
  "dlm.rollout": Layer((*PARTS, "dlm.build"), ("jax", "numpy")),
  "dlm.stepwise": Layer((*PARTS, "dlm.build", "dlm.rollout"), ("jax", "flax", "numpy")),
  "dlm.episodes": Layer(
    ("dlm.agent", "dlm.build", "dlm.generate", "dlm.parallel", "dlm.types"), ("jax", "numpy")
  ),
  "dlm.targets": Layer((*PARTS, "dlm.build", "dlm.train"), ("jax", "numpy")),
  "dlm.train": Layer(
    (*PARTS, "dlm.build", "dlm.episodes", "dlm.preemption", "dlm.rollout", "dlm.stepwise"),
    ("jax", "flax", "optax", "numpy"),
  ),
  "dlm.evaluation": Layer(
    (*BELOW_THE_PATHS, "dlm.generate"), ("jax", "flax", "numpy"), ("matplotlib",)
  ),
  "dlm.evaluation.respond": Layer(
    ("dlm.evaluation", "dlm.build", "dlm.completions", "dlm.data", "dlm.generate", "dlm.parallel"),
    ("numpy",),
  ),
  # lm-evaluation-harness and what it brings, imported where that is installed.
  "dlm.evaluation.harness": Layer(
    ("dlm.evaluation", "dlm.build", "dlm.completions"), ("datasets", "lm_eval")
  ),
  "dlm.evaluation.harness_tasks": Layer((), ("datasets",)),
  "configs": Layer((), ("ml_collections",)),
  "experiments": Layer(
    ("dlm", "kernels_pallas"),
    ("jax", "flax", "optax", "numpy", "absl", "rich"),
    ("matplotlib",),
  ),
  # Baselines in another library, imported where that is installed.
  "experiments.benchmarks.torch_decoding": Layer(
    ("dlm",), ("jax", "numpy", "torch", "transformers")
  ),
  "experiments.benchmarks.torch_llada": Layer(("dlm",), ("jax", "numpy", "torch")),
  "colab": Layer(("dlm", "kernels_pallas", "experiments"), ("jax", "numpy")),
}
CORE = (
  "kernels_pallas", *WORDS, "dlm.diffusion", "dlm.models", "dlm.objectives", "dlm.sampling",
  "dlm.weights",
)  # fmt: skip


def files() -> list[pathlib.Path]:
  return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def under(module: str, prefix: str) -> bool:
  return module == prefix or module.startswith(prefix + ".")


def layer_of(module: str) -> str:
  """The longest name in the table that holds the module. `dlm` itself holds no other file."""
  names = [name for name in LAYERS if under(module, name) and (name != "dlm" or module == "dlm")]
  if not names:
    raise LookupError(f"{module} has no row in LAYERS: say there what it may import")
  return max(names, key=len)


def imports(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
  """Every dotted name that is imported, and whether only when a function runs."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, inside_function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      stem = "." * node.level + (node.module or "")
      yield from ((f"{stem}.{alias.name}", inside_function) for alias in node.names)
    else:
      is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
      yield from imports(node, inside_function or is_function)


def offences(module: str, source: str) -> list[str]:
  layer = layer_of(module)
  rule = LAYERS[layer]
  found = []
  for name, is_lazy in imports(ast.parse(source)):
    top = name.partition(".")[0]
    if not top:
      found.append(f"{module}: relative import {name}: write the full path")
    elif top in FOLDERS:
      if not any(under(name, allowed) for allowed in (layer, *rule.ours)):
        found.append(f"{module} imports {name}; {layer} may import {rule.ours}")
    elif top not in sys.stdlib_module_names:
      packages = rule.packages + (rule.lazy if is_lazy else ())
      if top not in packages:
        found.append(f"{module} imports {name}; {layer} may import {packages}")
  return found


def test_imports_point_one_way():
  assert [each for path in files() for each in offences(module_of(path), path.read_text())] == []


def test_the_table_has_no_circle():
  graph = {name: {layer_of(other) for other in rule.ours} for name, rule in LAYERS.items()}
  graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
  ("module", "source", "is_offence"),
  [
    ("dlm.models.attention", "from dlm import masks", False),
    ("dlm.models.attention", "from dlm import train", True),
    ("dlm.models.attention", "from dlm.sampling.loop import run", True),
    ("dlm.models.attention", "from .layers import rotary", True),
    ("dlm.objectives.mdlm", "def f():\n  import dlm.models.bind", True),
    ("dlm.types", "from kernels_pallas.token_stats import StatSpec", False),
    ("dlm.types", "from kernels_pallas import linear_xent", True),
    ("dlm.data.rows", "import numpy, json", False),
    ("dlm.data.rows", "import jax", True),
    ("dlm.metrics", "from rich import progress", True),
    ("dlm.metrics", "def f():\n  from rich import progress", False),
    ("kernels_pallas.dispatch", "import numpy", True),
    ("configs.train.any", "import dlm", True),
  ],
)
def test_the_checker_tells_right_from_wrong(module, source, is_offence):
  assert bool(offences(module, source)) == is_offence


def test_a_file_without_a_layer_is_refused():
  with pytest.raises(LookupError, match="has no row"):
    layer_of("dlm.newcomer")


# Bases first, with all that they bring; from then on only the standard library and our own code may
# be found, as on a machine that has nothing else.
ALONE = """
import importlib, sys
import jax, jax.experimental.pallas, flax.linen, flax.struct, numpy, optax, safetensors

known = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
class Nothing:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] not in known | {"dlm", "kernels_pallas"}:
      raise ModuleNotFoundError(f"the core wants {name}", name=name)
sys.meta_path.insert(0, Nothing())
for name in sys.argv[1:]:
  importlib.import_module(name)
"""


def test_the_core_needs_jax_flax_optax_and_numpy_alone():
  core = [m for m in map(module_of, files()) if any(under(m, name) for name in CORE)]
  done = subprocess.run(
    [sys.executable, "-c", ALONE, *core], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_file_names_say_something():
  empty = [path for path in files() if BANNED & {path.stem, *path.relative_to(ROOT).parts}]
  assert empty == []


def test_every_package_folder_is_found_by_setuptools():
  """`packages = find:` leaves out a folder without `__init__.py`, and a wheel would lack it."""
  folders = {path.parent for path in files() if module_of(path).startswith(("dlm", "kernels_"))}
  assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def lists_in(value) -> bool:
  if isinstance(value, dict):
    return any(map(lists_in, value.values()))
  return isinstance(value, list) or (isinstance(value, tuple) and any(map(lists_in, value)))


CONFIGS = [path for path in files() if path.is_relative_to(ROOT / "configs")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_is_a_table(path):
  """What it sets, and no more: no list, which would not hash. The docstring runs it."""
  spec = importlib.util.spec_from_file_location("config_under_test", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  assert isinstance(config, ConfigDict)
  assert not lists_in(config.to_dict())
  assert module.__doc__ and str(path.relative_to(ROOT)) in module.__doc__


def test_no_folder_of_tests_is_passed_over(pytestconfig):
  folders = {file.relative_to(ROOT).parent for file in (ROOT / "tests").rglob("*_test.py")}
  assert folders
  for pattern in pytestconfig.getini("norecursedirs"):
    passed_over = {f for f in folders if any(fnmatch.fnmatch(p, pattern) for p in f.parts)}
    assert not passed_over, f"norecursedirs={pattern}"
