"""Memory: bytes of compiled programs, with the kernels and without, with sliding caches and plain.

Nothing is allocated: programs are compiled for shapes, and XLA says what they need besides their
arguments and results. So a program may be of a size, and for a device, that are not here (see
`kernels_pallas.aot`; `make aot` fetches the compilers, and without them those rows are left out).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from dlm import masks
from dlm.models import GemmaConfig, ModelConfig, MoeConfig, bind, from_preset, layouts
from dlm.models.quantised import quantise, quantised
from dlm.objectives import Mdlm
from dlm.sampling import loop
from dlm.sampling.caching import PLANS
from dlm.sampling.canvas import make_canvas
from dlm.sampling.forward import empty_cache
from dlm.sampling.policies import Threshold
from dlm.types import Array, KVCache, Noisy, Params
from experiments.benchmarks.results import Row, Table
from kernels_pallas import aot

BLOCK = 32
# The other implementation of the same ops: all logits, and all attention weights, at once.
NAIVE = "reference"
SMALL = ModelConfig(vocab=1, width=64, layers=2, heads=2, kv_heads=2, head_dim=32, mlp=128)
GEMMA = from_preset("diffusion-gemma", vocab=262_144, dtype="bfloat16")
SMALL_GEMMA = dataclasses.replace(
  SMALL,
  vocab=500,
  qk_norm=True,
  moe=MoeConfig(experts=2, per_token=2, mlp=16, renormalise=True),
  gemma=GemmaConfig(full=(1,), window=33, kv_heads=1, head_dim=64),
)
LLADA_8B = from_preset("llada-8b", vocab=126_464, dtype="bfloat16", remat=True)


@dataclasses.dataclass(frozen=True)
class Held:
  """A sampling loop that holds a cache, for one device; None: this machine's."""

  plan: str
  weights: str = ""  # this and the next as a sampling config has them
  cache_format: str = ""
  device: str | None = None
  block: int = BLOCK


@dataclasses.dataclass(frozen=True)
class Size:
  vocabs: tuple[int, ...]
  batches: tuple[int, ...]
  model: ModelConfig  # of the programs for several devices
  batch: int  # rows of the sampler, a block each
  length: int  # of a training row
  sliding: ModelConfig  # of a forward over a canvas against cached text
  canvas: int
  contexts: tuple[int, ...]
  canvases: tuple[int, int]  # rows and slots of the loops that hold a cache
  held: tuple[Held, ...]


SIZES = {
  "tiny": Size((8_000, 24_000), (8, 32), dataclasses.replace(SMALL, vocab=8_000), 8, 256,
                SMALL_GEMMA, 16, (1024,), (2, 64),
                (Held("dual", cache_format="kivi2"), Held("block", cache_format="kivi2", block=8))),
  "default": Size((32_000, 64_000, 128_000, 152_000), (1, 32), LLADA_8B, 32, 4096,
                  GEMMA, 256, (4096, 32_768), (32, 1024),
                  (Held("dual", device="v5p"), *(Held(plan, "int4g128", "kivi2", "v5e")
                                                 for plan in ("dual", "block", "dkv_decode")),
                   *(Held("block", "int4g128", "kivi2", "v5e", block) for block in (8, 4)))),
}  # fmt: skip
TPUS = [name for name, (platform, _) in aot.TOPOLOGIES.items() if platform == "tpu"]
DEVICES = ("v5p", "h100")  # besides this machine's, of the programs without a cache


def run(size: str) -> list[Table]:
  chosen = SIZES[size]
  grid = [(batch, vocab) for batch in chosen.batches for vocab in chosen.vocabs]
  ours = {(batch, vocab): temporary_bytes(batch, vocab) for batch, vocab in grid}
  naive = {(batch, vocab): temporary_bytes(batch, vocab, NAIVE) for batch, vocab in grid}
  rows = [
    {
      "naive / ours": naive[case] / ours[case],
      "case": f"{case[0] * BLOCK} rows, vocabulary {case[1]}",
      "ours, B": float(ours[case]),
      "naive, B": float(naive[case]),
      "one [rows, vocabulary] float32, B": float(4 * case[0] * BLOCK * case[1]),
    }
    for case in grid
  ]
  growth = [
    {"B per row x vocabulary": growth_per_logit(bytes_), "case": name}
    for name, bytes_ in {"ours": ours, "naive": naive}.items()
  ]
  devices, absent = _devices((None, *DEVICES))
  at_hand, without = _devices(tuple(dict.fromkeys(held.device for held in chosen.held)))
  return [
    Table("memory", "temporary bytes of the sampler with all logits at once / in tiles", rows),
    Table("growth", "bytes that each further logit costs; one float32 array of them: 4", growth),
    Table(
      "devices",
      f"temporary bytes without kernels / with them, compiled for the device{_missing(absent)}",
      [row for device in devices for row in _programs(chosen, device)],
    ),
    Table(
      "sliding",
      "bytes of the cache and of a compiled forward over a canvas: sliding layers that keep all of "
      "the context / their window",
      [_windowed(chosen, slots) for slots in chosen.contexts],
    ),
    Table(
      "caches",
      "bytes beside the arguments when a sampling loop needs most / those of its cache, "
      f"{chosen.canvases[0]} rows x {chosen.canvases[1]} slots{_missing(without)}",
      [_held(chosen, held) for held in chosen.held if held.device in at_hand],
    ),
  ]


def _held(size: Size, held: Held) -> Row:
  """The peak is what a TPU must hold; temporaries that never live together add up to more.

  Its CPU backend leaves temporaries out of the peak.
  """
  program, cache = cached(size.model, held, *size.canvases)
  memory = program.memory_analysis()
  arguments, peak = memory.argument_size_in_bytes, memory.peak_memory_in_bytes
  kept = f"{held.weights or size.model.dtype}, cache {held.cache_format or size.model.dtype}"
  return {
    "beside arguments / cache": (peak - arguments) / cache,
    "case": f"{held.plan} of {held.block}, weights {kept}, {held.device or jax.default_backend()}",
    "cache, B": float(cache),
    "arguments, B": float(arguments),
    "temporaries, B": float(memory.temp_size_in_bytes),
    "peak, B": float(peak),
  }


def _windowed(size: Size, slots: int) -> Row:
  """A plain cache is that of the same model with a window as long as the context."""
  gemma = size.sliding.gemma
  plain = dataclasses.replace(gemma, window=slots + 1)
  (ours, temporary_ours), (all_of_it, temporary_plain) = (
    canvas_bytes(dataclasses.replace(size.sliding, gemma=each), size.canvas, slots)
    for each in (gemma, plain)
  )
  return {
    "plain / ours": all_of_it / ours,
    "case": f"{slots} tokens",
    "ours, B": float(ours),
    "plain, B": float(all_of_it),
    "temporary, ours, B": float(temporary_ours),
    "temporary, plain, B": float(temporary_plain),
  }


def canvas_bytes(config: ModelConfig, canvas: int, slots: int) -> tuple[int, int]:
  """Of one row that denoises a canvas at the end of `slots`: its cache, and what is temporary."""
  model, params = bind(config), _params(config)
  ids = jax.ShapeDtypeStruct((1, canvas), jnp.int32)
  cache = jax.eval_shape(functools.partial(model.empty_cache, 1, slots))

  def forward(params: Params, tokens_BxW: Array, slot_BxW: Array, cache: KVCache) -> Array:
    out = model(
      params,
      tokens_BxW,
      slot_BxW=slot_BxW,
      mask=masks.Canvas(canvas)(slot_BxW, slots, start_B=slot_BxW[:, 0]),
      time_BxW=jnp.ones((1, canvas)),
      cache=cache,
    )
    return out.head.hidden_BxAxD

  shapes = params, ids, ids, cache
  memory = _compiled(forward, None, *shapes).memory_analysis()
  beside = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes[:3]))
  return memory.argument_size_in_bytes - beside, memory.temp_size_in_bytes


def _devices(names: tuple[str | None, ...]) -> tuple[list[str | None], list[str]]:
  """Those that can be compiled for (None: this machine's), and those that cannot."""
  there, absent = [], []
  for device in names:
    try:
      if device is not None:
        aot.mesh(device)
    except RuntimeError:
      absent.append(device)
    else:
      there.append(device)
  return there, absent


def _missing(devices: list[str]) -> str:
  return f"; no compiler here for {', '.join(devices)}: make aot" if devices else ""


def _programs(size: Size, device: str | None) -> list[Row]:
  """The sampler and the gradient of a loss, each with and without kernels."""
  programs = {
    f"sampler, {size.batch} blocks of {BLOCK}": (sampler, size.batch, size.batch * BLOCK),
    f"gradient, 1 x {size.length}": (gradient, size.length, size.length),
  }
  here = jax.default_backend()
  dtype = "float32" if (device or here) == "cpu" else size.model.dtype  # CPUs compute in float32
  rows = []
  for case, (program, count, asked) in programs.items():
    ours, naive = (
      temporary(
        program(dataclasses.replace(size.model, implementation=name, dtype=dtype), count, device)
      )
      for name in (None, NAIVE)
    )
    rows.append(
      {
        "naive / ours": naive / ours,
        "case": f"{case}, {device or here}",
        "ours, B": float(ours),
        "naive, B": float(naive),
        "one [rows, vocabulary] float32, B": float(4 * asked * size.model.vocab),
      }
    )
  return rows


@functools.cache
def temporary_bytes(batch: int, vocab: int, implementation: str | None = None) -> int:
  """Of the sampling loop over `batch` blocks of `BLOCK` rows; parameters are not counted."""
  model = dataclasses.replace(SMALL, vocab=vocab, implementation=implementation)
  return temporary(sampler(model, batch))


def temporary(program: Compiled) -> int:
  return program.memory_analysis().temp_size_in_bytes


def sampler(config: ModelConfig, batch: int, device: str | None = None) -> Compiled:
  """The sampling loop over `batch` rows of a prompt's block and one to write.

  Args:
    device: of `aot.TOPOLOGIES`; None: this machine's.
  """
  model, mask_id = bind(config), config.vocab - 1
  own = loop.Sampler(
    denoise=model,
    policy=Threshold(),
    plan=PLANS["none"](),
    sees=masks.BlockCausal(BLOCK),
    block=BLOCK,
    max_forwards=1000,
    mask_id=mask_id,
  )
  tokens, free = np.zeros(2 * BLOCK, np.int32), np.arange(2 * BLOCK) >= BLOCK
  canvas = make_canvas(
    [tokens] * batch,
    [free] * batch,
    list(range(batch)),
    slots=2 * BLOCK,
    block=BLOCK,
    align="canvas",
    mask_id=mask_id,
    seed=0,
  )
  return _compiled(functools.partial(loop.run, own), device, _params(config), canvas)


def cached(config: ModelConfig, held: Held, rows: int, slots: int) -> tuple[Compiled, int]:
  """The sampling loop over so many rows of a canvas, and the bytes of its cache.

  Cache "block" is that of a model that sees blocks; others are of one that sees all.
  """
  by_block = held.plan == "block"
  own = loop.Sampler(
    denoise=bind(config),
    policy=Threshold(),
    plan=PLANS[held.plan](),
    sees=masks.BlockCausal(held.block) if by_block else masks.Full(),
    block=held.block,
    max_forwards=1000,
    mask_id=config.vocab - 1,
    cache_format=held.cache_format,
  )
  tokens, free = np.zeros(slots, np.int32), np.arange(slots) >= slots // 2
  canvas = make_canvas(
    [tokens] * rows, [free] * rows, list(range(rows)), slots=slots, block=held.block,
    align="canvas" if by_block else "prompt", mask_id=config.vocab - 1, seed=0,
  )  # fmt: skip
  params = _params(config)
  if held.weights:
    params = jax.eval_shape(lambda params: quantised(params, quantise(held.weights)), params)
  where = contextlib.nullcontext()  # as its own device holds a cache
  if held.device in TPUS:
    mesh = aot.mesh(held.device)
    params, where = _laid(params, mesh), jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
  with where:
    cache = jax.eval_shape(functools.partial(empty_cache, own, rows, slots))
  count = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  return _compiled(functools.partial(loop.run, own), held.device, params, canvas), count


def gradient(config: ModelConfig, length: int, device: str | None = None) -> Compiled:
  """A loss and its gradient over one row; gradients themselves are results."""
  model = bind(config)

  def loss(params: Params, noisy: Noisy) -> Array:
    return Mdlm(config.vocab - 1).loss(model, params, noisy)[0].total

  ids, numbers = (jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.float32))
  noisy = Noisy(
    inputs_BxW=ids,
    targets_BxL=ids,
    weight_BxL=numbers,
    count_B=jax.ShapeDtypeStruct((1,), jnp.float32),
    slot_BxW=ids,
    time_BxW=numbers,
    mask=jax.eval_shape(lambda slot_BxW: masks.Full()(slot_BxW, length), ids),
  )
  return _compiled(jax.value_and_grad(loss), device, _params(config), noisy)


def _params(config: ModelConfig) -> Params:
  """Shapes, in the model's data type: as they are sampled with, or a training's working copy."""
  shapes = jax.eval_shape(bind(config).init, jax.random.key(0))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype), shapes)


def _laid(params: Params, mesh: Mesh) -> Params:
  """Their shapes as `layouts.laid` puts them on a TPU."""
  heads_first = Format(layouts.HEADS_FIRST, NamedSharding(mesh, PartitionSpec()))

  def of(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    is_laid = layouts.by_head(path, x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=heads_first) if is_laid else x

  return jax.tree_util.tree_map_with_path(of, params)


def _compiled(fn: Callable[..., Any], device: str | None, *shapes: Any) -> Compiled:
  if device is None:
    return jax.jit(fn).lower(*shapes).compile()
  return aot.compile_for(aot.mesh(device), fn, *shapes)


def growth_per_logit(bytes_: dict[tuple[int, int], int]) -> float:
  """Bytes per row x vocabulary, from the corners of the grid.

  The difference of differences: what grows with rows alone (activations) or with the vocabulary
  alone (a copy of the unembedding) drops out.
  """
  batches, vocabs = zip(*bytes_, strict=True)
  few, many, small, large = min(batches), max(batches), min(vocabs), max(vocabs)
  corners = bytes_[many, large] - bytes_[many, small] - bytes_[few, large] + bytes_[few, small]
  return corners / ((many - few) * BLOCK * (large - small))
