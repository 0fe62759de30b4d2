"""Compilation: seconds to trace, lower and compile a train step and a sampler, and where they go.

Layers run in a scan, so programs of all depths are equally long. Presets and kernels are counted in
seconds of CPU, which other jobs on the machine disturb less. Run it without jax's persistent cache,
as `experiments.benchmark` does.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from dlm import build, masks
from dlm.build.sampling import POSITIONS
from dlm.models import ModelConfig, bind
from dlm.models.presets import from_preset
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold
from dlm.train import Step
from dlm.types import Batch
from experiments.benchmarks.results import Row, Spread, Table, ratio

Program = Callable[[], jax.stages.Traced]  # traces anew


@dataclasses.dataclass(frozen=True)
class Size:
  layers: tuple[int, ...]
  rounds: int
  presets: tuple[tuple[str, int], ...]  # and their vocabularies
  caches: tuple[str, ...]
  rows: int
  objectives: tuple[str, ...]
  kernels: int  # of a kind, which are compiled in one program


SIZES = {
  "tiny": Size((2, 3), 1, (("1m", 260),), ("none",), 1, (), 2),
  "default": Size(
    (2, 8, 32),
    2,
    (("1m", 260), ("30m", 32_000), ("100m", 32_000)),
    ("none", "block", "dual", "prefix"),
    4,
    ("mdlm", "bd3lm"),
    20,
  ),
}
WIDTHS = dict(width=64, heads=2, kv_heads=2, head_dim=32, mlp=128)
LENGTH = 64
KERNELS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "add": lambda x: x + 1,
  "exp": jnp.exp,
  "sum": lambda x: x.sum(-1),
  "transpose": lambda x: x.T,
  "gather": lambda x: x[jnp.array([1, 3, 2])],
  "scatter": lambda x: x.at[jnp.arange(3), 2].set(1.0),
  "product": lambda x: x.T @ x,
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What one compilation took, and the size of what was compiled."""

  trace: float  # by the clock that was asked for: seconds
  lower: float
  compile: float
  equations: int  # of the jaxpr, inner ones included, a scan's body once
  lines: int  # of StableHLO
  kernels: tuple[str, ...]  # XLA's fusions, without names: equal ones are compiled once

  @property
  def seconds(self) -> float:
    return self.trace + self.lower + self.compile


def run(size: str) -> Iterator[Table]:
  chosen = SIZES[size]
  yield Table("kernels", "CPU seconds of one more kernel / of one more addition", _kernels(chosen))
  for preset, vocab in chosen.presets:
    rows = _programs(chosen, preset, vocab)
    yield Table(f"preset {preset}", "CPU seconds of XLA / from Python to a program", rows)
  note = "seconds from Python to a program / those of the fewest layers"
  yield Table("compile", note, _depths(chosen))


def _depths(chosen: Size) -> list[Row]:
  rows = []
  for name, program in {"train step": train_step, "sampler": sampler}.items():
    programs = {layers: program(layers) for layers in chosen.layers}
    found = {layers: [] for layers in chosen.layers}
    for _ in range(chosen.rounds):
      for layers in chosen.layers:
        found[layers].append(compiled(programs[layers]))
    shallowest = [each.seconds for each in found[chosen.layers[0]]]
    for layers, each in found.items():
      parts = {part: Spread.of([getattr(c, part) for c in each]) for part in ("trace", "compile")}
      rows.append(
        {
          "times the shallowest": ratio([c.seconds for c in each], shallowest),
          "case": f"{name}, {layers} layers",
          "seconds": Spread.of([c.seconds for c in each]),
          **{f"{part}, s": spread for part, spread in parts.items()},
          "equations": each[0].equations,
          "HLO lines": each[0].lines,
        }
      )
  return rows


def _programs(chosen: Size, preset: str, vocab: int) -> list[Row]:
  model, shapes = from_preset(preset, vocab=vocab), {"rows": chosen.rows, "length": 2 * LENGTH}
  programs = {
    f"sampler, cache {cache}": sampler_of(model, cache, positions=POSITIONS[True], **shapes)
    for cache in chosen.caches
  } | {
    f"train step, {name}": train_step_of({"preset": preset, "vocab": vocab}, name)
    for name in chosen.objectives
  }
  rows = []
  for case, program in programs.items():
    found = compiled(program, clock=time.process_time)
    rows.append(
      {
        "share": Spread.of([found.compile / found.seconds]),
        "case": case,
        "CPU s": found.seconds,
        "trace, CPU s": found.trace,
        "lower, CPU s": found.lower,
        "HLO lines": found.lines,
        "kernels": len(found.kernels),
        "distinct": len(set(found.kernels)),
      }
    )
  return rows


def _kernels(chosen: Size) -> list[Row]:
  """What a kernel takes to compile: programs of many shapes, each a kernel, less one of a few."""
  found: dict[str, list[float]] = {}
  for kind, kernel in KERNELS.items():
    few, many = (_of_shapes(kernel, count) for count in (2, 2 + chosen.kernels))
    compiled(few)  # what is made ready once is not counted
    found[kind] = []
    for _ in range(chosen.rounds):
      seconds = [compiled(each, clock=time.process_time).compile for each in (few, many)]
      found[kind].append((seconds[1] - seconds[0]) / chosen.kernels)
  return [
    {"times an addition": ratio(each, found["add"]), "kernel": kind, "CPU s": Spread.of(each)}
    for kind, each in found.items()
  ]


def _of_shapes(kernel: Callable[[jax.Array], jax.Array], count: int) -> Program:
  xs = [jax.ShapeDtypeStruct((32 + i, 40 + i), jnp.float32) for i in range(count)]
  return lambda: jax.jit(lambda *xs: [kernel(x) for x in xs]).trace(*xs)


def compiled(program: Program, clock: Callable[[], float] = time.perf_counter) -> Compiled:
  """Compiles from nothing: what jax remembers of earlier traces is dropped first."""
  jax.clear_caches()
  times = [clock()]
  traced = program()
  times.append(clock())
  lowered = traced.lower()
  times.append(clock())
  executable = lowered.compile()
  times.append(clock())
  lines = lowered.as_text().count("\n")
  equations, kernels = _equations(traced.jaxpr.jaxpr), fusions(executable.as_text())
  return Compiled(*np.diff(times).tolist(), equations, lines, kernels)


def fusions(hlo: str) -> tuple[str, ...]:
  """The fused computations of a compiled program that are called, without names and metadata."""
  bodies: dict[str, str] = {}
  for head, body in re.findall(r"^%?([\w.\-]+) \(.*\{\n((?: .*\n)*)\}", hlo, re.M):
    bodies[head] = re.sub(r", metadata=\{[^}]*\}", "", body)

  def plain(name: str) -> str:
    numbers: dict[str, str] = {}
    inner = re.sub(r"((?:calls|to_apply)=)%?([\w.\-]+)", lambda m: m[1] + plain(m[2]), bodies[name])
    return re.sub(r"%[\w.\-]+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), inner)

  called = re.findall(r" fusion\(.*calls=%?([\w.\-]+)", hlo)
  return tuple(plain(name) for name in called)


def train_step(layers: int) -> Program:
  return train_step_of({"layers": layers, **WIDTHS}, "bd3lm")


def train_step_of(model: dict[str, Any], objective: str) -> Program:
  config = {
    "seed": 0,
    "steps": 1000,
    "batch": 4,
    "model": model,
    "objective": {"name": objective, **({"block": 16} if objective == "bd3lm" else {})},
    "data": {"sources": (("stdlib", 1.0),), "length": LENGTH},
    "optimizer": {"lr": 1e-3, "ema": 0.99},
    "checkpoint": {"keep_best": 0},
  }
  training = build.everything(config)
  state = jax.eval_shape(Step(training).init)
  batch = Batch(*map(jnp.asarray, training.rows[0]))
  return lambda: Step(training).update.trace(state, batch)


def sampler(layers: int) -> Program:
  model = ModelConfig(vocab=260, layers=layers, **WIDTHS)
  return sampler_of(model, "block", rows=1, length=LENGTH)


def sampler_of(
  config: ModelConfig, cache: str, *, rows: int, length: int, positions: int = 0
) -> Program:
  """Over rows of one length; cache "block" of a model that reads block by block."""
  model, block, mask_id = bind(config), 16, config.vocab - 1
  static = loop.Sampler(
    denoise=model,
    policy=Threshold(),
    plan=PLANS[cache](),
    sees=masks.BlockCausal(block) if cache == "block" else masks.Full(),
    block=block,
    max_forwards=1000,
    mask_id=mask_id,
    positions=positions,
  )
  tokens, free = np.zeros(length, np.int32), np.arange(length) >= block
  canvas = make_canvas(
    [tokens] * rows,
    [free] * rows,
    range(rows),
    slots=length,
    block=block,
    align="canvas",
    mask_id=mask_id,
    seed=0,
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  return lambda: jax.jit(loop.run, static_argnums=0).trace(static, params, canvas)


def _equations(jaxpr: Jaxpr) -> int:
  """Equations of a jaxpr and of those inside it."""
  inner = (jaxpr for equation in jaxpr.eqns for jaxpr in jaxprs_in_params(equation.params))
  return len(jaxpr.eqns) + sum(map(_equations, inner))
