"""Products of bfloat16 rows and kernels: as the layers ask for them here, over XLA's plain way.

A chain of kernels that do not fit a CPU's caches, as a model's: each row goes through all of them.
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
  width: int
  kernels: int
  rows: tuple[int, ...]
  rounds: int


SIZES = {
  "tiny": Size(16, 2, (8,), 2),
  "default": Size(1536, 8, (1, 4, 8, 16, 32, 64, 128, 512), 15),
}


def run(size: str) -> list[Table]:
  chosen, rows = SIZES[size], []
  draw = np.random.default_rng(0)
  shape = (chosen.kernels, chosen.width, chosen.width)
  kernels = jnp.asarray(draw.normal(size=shape) * chosen.width**-0.5, jnp.float32)
  for count in chosen.rows:
    x = jnp.asarray(draw.normal(size=(count, chosen.width)), jnp.float32)
    narrow = x.astype(jnp.bfloat16), kernels.astype(jnp.bfloat16)
    plain, ours = _chain(functools.partial(jnp.einsum, EQN)), _chain(_ours)
    calls = {
      "plain": functools.partial(plain, *narrow),
      "ours": functools.partial(ours, *narrow),
      "float32": functools.partial(plain, x, kernels),
    }
    for call in calls.values():
      jax.block_until_ready(call())
    seconds, _ = interleaved(calls, chosen.rounds)
    rows.append(
      {
        "speed-up": ratio(seconds["plain"], seconds["ours"]),
        "rows": count,
        "over float32": ratio(seconds["float32"], seconds["ours"]),
        "seconds": Spread.of(seconds["ours"]),
      }
    )
  return [Table("products", "seconds of plain bfloat16 products / seconds of the layers'", rows)]


def _ours(x: Array, kernel: Array) -> Array:
  return product(EQN, x, kernel)


def _chain(multiply: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
  def through(x: Array, kernels: Array) -> Array:
    return jax.lax.scan(lambda x, kernel: (multiply(x, kernel), None), x, kernels)[0]

  return jax.jit(through)
