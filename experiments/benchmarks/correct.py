"""Each implementation of an op against the reference in float32, on inputs that are new every time.

Kernels are tested without the device that they are for: compiled for it, and interpreted. This is
what only the device can tell. An error is the largest difference in an array over the array's
largest value; what is allowed is 1 % where the result is bfloat16, 0.1 % where it is float32, and
of ids one in 16 (equal logits but for rounding). What has no value on one side only is inf.
"""

import dataclasses
import math
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import kernels
from experiments.benchmarks.kernels import Shape, Work
from experiments.benchmarks.results import Row, Spread, Table
from kernels_pallas import dispatch
from kernels_pallas.token_stats import TokenStats

ALLOWED = {"bfloat16": 1e-2, "float32": 1e-3, "int32": 1 / 16}
TINY = dataclasses.replace(kernels.SIZES["tiny"], dtype="bfloat16", rounds=2)
CPU = kernels.Size(
  {"heads of 64": Shape(256, 4_000, 4, 2, 64), "heads of 128": Shape(256, 4_096, 4, 4, 128)},
  "bfloat16", 64, (32,), 64, ((2, 32, 256),), 128, 32, 2,
)  # fmt: skip
ACCELERATOR = kernels.Size(
  {"heads of 64": Shape(1024, 32_000, 16, 4, 64), "LLaDA-8B": kernels.LLADA_8B},
  "bfloat16", 64, (32, 512), 512, ((1, 32, 1024), (4, 32, 4096)), 1024, 32, 3,
)  # fmt: skip


def run(size: str) -> Iterator[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  seed = int.from_bytes(os.urandom(3), "big")
  note = f"error / what is allowed, over {chosen.rounds} draws of seed {seed}"
  for op, works in kernels.OPS.items():
    rows = []
    for name, shape in chosen.shapes.items():
      for work in works(chosen, shape):
        rows += _checked(name, work, seed, chosen.rounds)
    yield Table(op, note, rows)


def wrong(tables: list[dict]) -> list[str]:
  """Of a file's tables: what exceeds what is allowed, a line each."""
  return [
    f"{table['title']}, {row['case']}, {row['implementation']}: {row['error / allowed']['max']:.3g}"
    for table in tables
    for row in table["rows"]
    if not row["error / allowed"]["max"] <= 1
  ]


def _checked(name: str, work: Work, seed: int, rounds: int) -> list[Row]:
  """Rows of what serves this call here; the reference is one of them, in the inputs' own dtype."""
  draws = [_drawn(work.inputs, jax.random.fold_in(jax.random.key(seed), i)) for i in range(rounds)]
  with jax.default_matmul_precision("highest"):
    reference = jax.jit(work.calls["reference"])
    exact = [
      jax.device_get(reference(*(x.astype(jnp.float32) for x in inputs))) for inputs in draws
    ]
  found = []
  for implementation in sorted(work.calls.keys() & set(dispatch.NAMES)):
    call = jax.jit(work.calls[implementation])
    try:
      done = [jax.device_get(call(*inputs)) for inputs in draws]
    except NotImplementedError:  # not for this device
      continue
    errors = [error(*each) for each in zip(done, exact, strict=True)]
    row = {"case": f"{name}, {work.case}", "implementation": implementation}
    found.append({"error / allowed": Spread.of(errors), **row})
  return found


def _drawn(inputs: tuple, key: jax.Array) -> tuple:
  """Arrays of the same shapes, spread and dtypes."""
  keys = jax.random.split(key, len(inputs))
  return tuple(
    (jax.random.normal(key, x.shape) * x.astype(jnp.float32).std()).astype(x.dtype)
    for key, x in zip(keys, inputs, strict=True)
  )


def error(done: object, exact: object) -> float:
  """The largest error of all arrays over what is allowed of it."""
  if isinstance(done, TokenStats):  # logits of two candidates say nothing about either
    same = done.token == exact.token
    done = dataclasses.replace(done, logit=np.where(same, done.logit, exact.logit))
  return max(jax.tree.leaves(jax.tree.map(_error, done, exact)))


def _error(done: np.ndarray, exact: np.ndarray) -> float:
  allowed = ALLOWED[str(done.dtype)]
  if done.dtype == np.int32:
    return float((done != exact).mean()) / allowed
  done, exact = done.astype(np.float32), exact.astype(np.float32)
  finite = np.isfinite(exact)
  if not np.array_equal(np.isfinite(done), finite):
    return math.inf
  scale = np.abs(exact[finite]).max(initial=0)
  worst = np.abs(done - exact)[finite].max(initial=0)
  return float(worst / (allowed * scale)) if scale else (math.inf if worst else 0.0)
