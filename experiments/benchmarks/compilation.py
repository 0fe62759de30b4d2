"""Compilation: seconds to trace, lower and compile a train step and a sampler, at several depths.

Layers run in a scan, so programs of all depths are equally long. Run it without jax's persistent
cache, as `experiments.benchmark` does.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from dlm import build, masks
from dlm.models import ModelConfig, bind
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policies import Threshold
from dlm.train import Step
from dlm.types import Batch
from experiments.benchmarks.results import Spread, Table, ratio

Program = Callable[[], jax.stages.Traced]  # traces anew


@dataclasses.dataclass(frozen=True)
class Size:
  layers: tuple[int, ...]
  rounds: int


SIZES = {"tiny": Size((2, 3), 1), "default": Size((2, 8, 32), 2)}
WIDTHS = dict(width=64, heads=2, kv_heads=2, head_dim=32, mlp=128)
LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What one compilation took, and the size of what was compiled."""

  trace: float  # seconds
  lower: float
  compile: float
  equations: int  # of the jaxpr, inner ones included, a scan's body once
  lines: int  # of StableHLO

  @property
  def seconds(self) -> float:
    return self.trace + self.lower + self.compile


def run(size: str) -> list[Table]:
  chosen = SIZES[size]
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
  return [Table("compile", "seconds from Python to a program / those of the fewest layers", rows)]


def compiled(program: Program) -> Compiled:
  """Compiles from nothing: what jax remembers of earlier traces is dropped first."""
  jax.clear_caches()
  times = [time.perf_counter()]
  traced = program()
  times.append(time.perf_counter())
  lowered = traced.lower()
  times.append(time.perf_counter())
  lowered.compile()
  times.append(time.perf_counter())
  lines = lowered.as_text().count("\n")
  return Compiled(*np.diff(times).tolist(), _equations(traced.jaxpr.jaxpr), lines)


def train_step(layers: int) -> Program:
  config = {
    "seed": 0,
    "steps": 1000,
    "batch": 4,
    "model": {"layers": layers, **WIDTHS},
    "objective": {"name": "bd3lm", "block": 16},
    "data": {"sources": (("stdlib", 1.0),), "length": LENGTH},
    "optimizer": {"lr": 1e-3, "ema": 0.99},
    "checkpoint": {"keep_best": 0},
  }
  training = build.everything(config)
  state = jax.eval_shape(Step(training).init)
  batch = Batch(*map(jnp.asarray, training.rows[0]))
  return lambda: Step(training).update.trace(state, batch)


def sampler(layers: int) -> Program:
  model = bind(ModelConfig(vocab=260, layers=layers, **WIDTHS))
  block, mask_id = 16, 259
  static = loop.Sampler(
    denoise=model,
    policy=Threshold(),
    plan=PLANS["block"](),
    sees=masks.BlockCausal(block),
    block=block,
    max_forwards=1000,
    mask_id=mask_id,
  )
  tokens, free = np.zeros(LENGTH, np.int32), np.arange(LENGTH) >= block
  canvas = make_canvas(
    [tokens], [free], [0], slots=LENGTH, block=block, align="canvas", mask_id=mask_id, seed=0
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  return lambda: jax.jit(loop.run, static_argnums=0).trace(static, params, canvas)


def _equations(jaxpr: Jaxpr) -> int:
  """Equations of a jaxpr and of those inside it."""
  inner = (jaxpr for equation in jaxpr.eqns for jaxpr in jaxprs_in_params(equation.params))
  return len(jaxpr.eqns) + sum(map(_equations, inner))
