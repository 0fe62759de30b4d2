"""Kernels kept as whole numbers, on a CPU: products of an MLP, and a block sampler of each format.

Products of float32 kernels that are arrays of their own, as a CPU that samples holds them
(`dlm.models.apart`), in turns with codes as the layers multiply them and with codes that are
multiplied whole: what XLA makes of the plain formula. CPU seconds are those of all threads: a busy
machine disturbs them least.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.models import Model, ModelConfig, bind, from_preset
from dlm.models.apart import apart
from dlm.models.layers import product
from dlm.models.quantised import Codes, quantise, quantised, rounded
from dlm.sampling import caching, loop
from dlm.sampling.policies import Fixed
from dlm.types import Array, Canvas, Params
from experiments.benchmarks import block
from experiments.benchmarks.results import Row, Spread, Table, interleaved, rate, ratio

EQN = "RC,CD->RD"
LAYERS, TURNS = 2, 2  # all in one program, as the forwards of a sampler
FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclasses.dataclass(frozen=True)
class Size:
  mlps: tuple[tuple[int, int], ...]  # widths, and those within
  rows: tuple[int, ...]
  formats: tuple[str, ...]
  model: ModelConfig
  blocks: tuple[int, ...]
  rounds: int
  prompt: int
  new: int
  steps: int = 4  # forwards a block


SIZES = {
  "tiny": Size(
    ((32, 64),), (1,), ("int4g16", "w8a8"), block.TINY.model, blocks=(4,), rounds=1, prompt=8, new=8
  ),
  "default": Size(
    ((4096, 12288), (2048, 6144)),
    (1, 2, 8, 32, 128),
    ("int8", "int8g128", "int4g128", "w8a8", "w4a8g128"),
    from_preset("1b", vocab=32_000),
    blocks=(32, 8),
    rounds=3,
    prompt=64,
    new=32,
  ),
}


def run(size: str) -> Iterator[Table]:
  chosen = SIZES[size]
  note = "seconds of float32 kernels / seconds of the format"
  for width, within in chosen.mlps:
    rows = [row for count in chosen.rows for row in _products(chosen, width, within, count)]
    yield Table(f"products, MLP of {width} x {within}", note, rows)
  for length in chosen.blocks:
    yield Table(f"sampler, blocks of {length}", note, _sampled(chosen, length))


def _products(size: Size, width: int, within: int, count: int) -> list[Row]:
  draw = np.random.default_rng(0)
  shapes = {"up": (LAYERS, width, within), "down": (LAYERS, within, width)}
  stacks = {
    name: jnp.asarray(draw.standard_normal(shape, np.float32) * shape[1] ** -0.5)
    for name, shape in shapes.items()
  }
  x = jnp.asarray(draw.normal(size=(count, width)), jnp.float32)
  numbers = [(stacks["up"][i], stacks["down"][i]) for i in range(LAYERS)]
  held = {FLOAT32: numbers, BFLOAT16: jax.tree.map(lambda x: x.astype(jnp.bfloat16), numbers)}
  calls = {
    FLOAT32: functools.partial(_through, x, numbers),
    BFLOAT16: functools.partial(_through, x.astype(jnp.bfloat16), held[BFLOAT16]),
  }
  for format in size.formats:
    codes = {name: quantise(format)(("layers", name, "kernel"), stacks[name]) for name in stacks}
    held[format] = codes
    calls[format] = functools.partial(_over_layers, _ours, x, codes)
    calls[f"{format}, whole"] = functools.partial(_over_layers, _whole, x, codes)
  seconds, used, _ = _timed(calls, size.rounds)
  operations = TURNS * LAYERS * 2 * 2 * count * width * within
  rows = []
  for name, kept in held.items():
    whole = f"{name}, whole"
    bytes_ = TURNS * sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    rows.append(
      {
        "speed-up": ratio(seconds[FLOAT32], seconds[name]),
        "rows": count,
        "kernels": name,
        "over whole": ratio(seconds[whole], seconds[name]) if whole in calls else "-",
        "speed-up, CPU s": ratio(used[FLOAT32], used[name]),
        "over whole, CPU s": ratio(used[whole], used[name]) if whole in calls else "-",
        "FLOP a CPU s": rate(operations, used[name]),
        "B of weights a CPU s": rate(bytes_, used[name]),
        "CPU s": Spread.of(used[name]),
      }
    )
  return rows


def _timed(
  calls: dict[str, Callable[[], Array]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, Array]]:
  """Seconds, CPU seconds of all threads, and results."""
  used: dict[str, list[float]] = {name: [] for name in calls}

  def call(name: str) -> Array:
    began = time.process_time()
    done = jax.block_until_ready(calls[name]())
    used[name].append(time.process_time() - began)
    return done

  for each in calls.values():
    jax.block_until_ready(each())
  seconds, done = interleaved({name: functools.partial(call, name) for name in calls}, rounds)
  return seconds, used, done


@jax.jit
def _through(x: Array, layers: list[tuple[Array, Array]]) -> Array:
  """Kernels that are arrays of their own."""
  kernels = [kernel for pair in layers for kernel in pair]

  def turn(_: int, x: Array) -> Array:
    return functools.reduce(functools.partial(product, EQN), kernels, x)

  return jax.lax.fori_loop(0, TURNS, turn, x)


@functools.partial(jax.jit, static_argnums=0)
def _over_layers(
  multiply: Callable[[Array, Codes, Array], Array], x: Array, stacks: dict[str, Codes]
) -> Array:
  """A scan over stacks of kernels, as a model's."""

  def layer(x: Array, i: Array) -> tuple[Array, None]:
    return multiply(multiply(x, stacks["up"], i), stacks["down"], i), None

  return jax.lax.fori_loop(0, TURNS, lambda _, x: jax.lax.scan(layer, x, jnp.arange(LAYERS))[0], x)


def _ours(x: Array, stack: Codes, layer: Array) -> Array:
  return stack.product(x, layer)


def _whole(x: Array, stack: Codes, layer: Array) -> Array:
  codes = jax.tree.map(lambda leaf: leaf[layer], stack)
  if not codes.format.activations:
    return product(EQN, x, codes.wide(x.dtype))
  rounded_RxI, scale_Rx1 = rounded(x, 8, axes=(1,))
  sum_RxO = jnp.matmul(rounded_RxI, codes.whole, preferred_element_type=jnp.int32)
  return sum_RxO * scale_Rx1 * codes.scale


def _sampled(size: Size, length: int) -> list[Row]:
  """Cached blocks of one row, in every format of the same random model."""
  model = bind(size.model)
  params = jax.jit(model.init)(jax.random.key(0))
  narrow = bind(dataclasses.replace(size.model, dtype=BFLOAT16))
  kinds: dict[str, tuple[Model, Params]] = {
    FLOAT32: (model, apart(params)),
    BFLOAT16: (narrow, apart(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))),
  }
  for format in size.formats:
    kinds[format] = model, quantised(params, quantise(format))
  del params
  canvas, calls = _canvas(size, length), {}
  for name, (kind, kept) in kinds.items():
    method = block.Method(Fixed(steps=size.steps), caching.ExactBlock())
    sees = masks.BlockCausal(length)
    sampler = method.sampler(kind, sees, length, size.model.vocab - 1)
    program = jax.jit(loop.run, static_argnums=0).lower(sampler, kept, canvas).compile()
    calls[name] = functools.partial(program, kept, canvas)
  seconds, used, done = _timed(calls, size.rounds)
  return [
    {
      "speed-up": ratio(seconds[FLOAT32], seconds[name]),
      "weights": name,
      "speed-up, CPU s": ratio(used[FLOAT32], used[name]),
      "tokens/s": rate(size.new, seconds[name]),
      "tokens a CPU s": rate(size.new, used[name]),
      "forwards": int(np.asarray(done[name].forwards_Bx3).sum()),
      "weights, B": float(sum(leaf.nbytes for leaf in jax.tree.leaves(kinds[name][1]))),
    }
    for name in calls
  ]


def _canvas(size: Size, length: int) -> Canvas:
  mask_id = size.model.vocab - 1
  prompt = np.random.default_rng(0).integers(0, mask_id, size.prompt, np.int32)
  return block.canvas_of([prompt], size.prompt + size.new, length, mask_id)
