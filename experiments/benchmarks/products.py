"""Products of bfloat16 rows and kernels: as the layers ask for them here, over XLA's plain way.

A chain of kernels that do not fit a CPU's caches, as a model's: each row goes through all of them.
Each is an array of its own, as a CPU that samples holds them (`dlm.models.apart`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dlm.models.layers import product
from dlm.types import Array
from experiments.benchmarks.results import Spread, Table, interleaved, ratio

EQN = "RC,CD->RD"


@dataclasses.dataclass(frozen=True)
class Size:
  widths: tuple[int, ...]
  kernels: int
  rows: tuple[int, ...]
  rounds: int


SIZES = {
  "tiny": Size((16,), 2, (8,), 2),
  "default": Size((1536, 4096), 4, (1, 2, 4, 8, 16, 32, 64, 128, 512), 9),
}


def run(size: str) -> list[Table]:
  chosen, rows = SIZES[size], []
  draw = np.random.default_rng(0)
  for width in chosen.widths:
    drawn = (draw.normal(size=(width, width)) * width**-0.5 for _ in range(chosen.kernels))
    kernels = tuple(jnp.asarray(kernel, jnp.float32) for kernel in drawn)
    narrow = tuple(kernel.astype(jnp.bfloat16) for kernel in kernels)
    for count in chosen.rows:
      x = jnp.asarray(draw.normal(size=(count, width)), jnp.float32)
      plain, ours = _chain(functools.partial(jnp.einsum, EQN)), _chain(_ours)
      calls = {
        "plain": functools.partial(plain, x.astype(jnp.bfloat16), narrow),
        "ours": functools.partial(ours, x.astype(jnp.bfloat16), narrow),
        "float32": functools.partial(plain, x, kernels),
      }
      for call in calls.values():
        jax.block_until_ready(call())
      seconds, _ = interleaved(calls, chosen.rounds)
      rows.append(
        {
          "speed-up": ratio(seconds["plain"], seconds["ours"]),
          "width": width,
          "rows": count,
          "over float32": ratio(seconds["float32"], seconds["ours"]),
          "seconds": Spread.of(seconds["ours"]),
        }
      )
  return [Table("products", "seconds of plain bfloat16 products / seconds of the layers'", rows)]


def _ours(x: Array, kernel: Array) -> Array:
  return product(EQN, x, kernel)


def _chain(multiply: Callable[[Array, Array], Array]) -> Callable[..., Array]:
  return jax.jit(lambda x, kernels: functools.reduce(multiply, kernels, x))
