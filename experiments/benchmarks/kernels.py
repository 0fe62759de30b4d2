"""The ops of `kernels_pallas`, each implementation beside XLA's plain way, at the shapes of models.

"of bandwidth" and "of peak" are shares of what this device reaches in a copy and in a square
matmul, measured beside them: bytes are those that any implementation must move (operands once,
results once), FLOPs those of the matmuls that the result needs, so an implementation that does more
than that has a smaller share. What an implementation does not serve, or what needs more than half
of the device's memory, has no row.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.types import Mask
from experiments.benchmarks.results import Row, Table, interleaved, rate, ratio
from kernels_pallas import block_attention, dispatch, linear_distill, linear_xent, token_stats

Array = jax.Array


_SORTED = 1 << 27  # logits that the reference may sort: more take it seconds


@dataclasses.dataclass(frozen=True)
class Shape:
  """What of a model matters here: width and vocabulary, query heads, key heads, head dim."""

  width: int
  vocab: int
  heads: int
  kv_heads: int
  head_dim: int


LLADA_8B = Shape(4096, 126_464, 32, 32, 128)
QWEN3_8B = Shape(4096, 151_936, 32, 8, 128)
LLADA2_MINI = Shape(2048, 157_184, 16, 4, 128)


@dataclasses.dataclass(frozen=True)
class Size:
  shapes: dict[str, Shape]
  dtype: str
  ceiling: int  # side of the matmul that tells the peak; a copy moves as many numbers
  rows: tuple[int, ...]  # of token_stats: one row's block of 32, and a batch of them
  xent_rows: int
  decode: tuple[tuple[int, int, int], ...]  # batch, window, cached slots
  train: int  # tokens of a row; [noisy; clean] has twice as many inputs
  block: int
  rounds: int
  distill: tuple[int, int] | None = None  # rows and width of linear_distill; None: as linear_xent


SIZES = {
  "tiny": Size(
    {"tiny": Shape(16, 600, 4, 2, 8)}, "float32", 64, (4,), 4, ((1, 4, 16),), 16, 4, 1
  ),
  "cpu": Size(
    {"LLaDA-8B": LLADA_8B, "Qwen3-8B": QWEN3_8B, "LLaDA2-mini": LLADA2_MINI},
    "float32", 1024, (32,), 32, ((1, 32, 4096),), 256, 32, 3,
    (512, 128),  # of a model's width 32 rows are one tile, and two unembeddings with gradients 8 GB
  ),
  "accelerator": Size(
    {"LLaDA-8B": LLADA_8B, "Qwen3-8B": QWEN3_8B, "LLaDA2-mini": LLADA2_MINI},
    "bfloat16", 8192, (32, 4096), 4096, ((1, 32, 4096), (4, 32, 32_768)), 4096, 32, 10,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
  """Calls that compute the same, and what the result cannot be had without."""

  case: str
  base: str  # the call that others are compared with
  calls: dict[str, Callable[..., Any]]
  inputs: tuple[Any, ...]
  nbytes: float
  flops: float


def run(size: str, op: str | None = None) -> Iterator[Table]:
  """`op`: that one alone."""
  backend = "cpu" if jax.default_backend() == "cpu" else "accelerator"
  chosen = SIZES["tiny" if size == "tiny" else backend]
  bandwidth, peak = _ceilings(chosen)
  note = "seconds of XLA's plain way / seconds"
  for name in OPS if op is None else [op]:
    rows = []
    for model, shape in chosen.shapes.items():
      for work in OPS[name](chosen, shape):
        rows += _measured(model, work, bandwidth, peak, chosen.rounds)
    yield Table(name, note, rows)


def _ceilings(size: Size) -> tuple[float, float]:
  """Bytes/s of a copy and FLOP/s of a square matmul: the best of some rounds."""
  side = size.ceiling
  x = jnp.ones((side, side), size.dtype)
  long = jnp.ones((64 * side * side if side > 64 else side * side,), size.dtype)
  matmul, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
  calls = {"matmul": lambda: matmul(x, x), "copy": lambda: copy(long)}
  for call in calls.values():
    jax.block_until_ready(call())
  seconds, _ = interleaved(calls, max(size.rounds, 3))
  return 2 * long.nbytes / min(seconds["copy"]), 2.0 * side**3 / min(seconds["matmul"])


def _measured(name: str, work: Work, bandwidth: float, peak: float, rounds: int) -> list[Row]:
  calls, programs = {}, {}
  for implementation, call in work.calls.items():
    try:
      programs[implementation] = jax.jit(call).lower(*work.inputs).compile()
    except NotImplementedError:  # not for this device
      continue
    if programs[implementation].memory_analysis().temp_size_in_bytes > _memory() / 2:
      continue
    calls[implementation] = functools.partial(programs[implementation], *work.inputs)
    jax.block_until_ready(calls[implementation]())
  seconds, _ = interleaved(calls, rounds)
  base = work.base if work.base in calls else "xla"
  return [
    {
      "speed-up": ratio(seconds[base], seconds[implementation]),
      "case": f"{name}, {work.case}",
      "implementation": implementation,
      "calls/s": rate(1.0, seconds[implementation]),
      "of bandwidth": rate(work.nbytes / bandwidth, seconds[implementation]).median,
      "of peak": rate(work.flops / peak, seconds[implementation]).median,
      "temporary, B": float(programs[implementation].memory_analysis().temp_size_in_bytes),
    }
    for implementation in calls
  ]


def _memory() -> float:
  """Bytes of this device; of a CPU, which does not say, as many as there may be."""
  stats = jax.devices()[0].memory_stats()
  return math.inf if stats is None else stats["bytes_limit"]


def _implementations(table: dict[str, Any]) -> list[str]:
  """Those that can run here: the kernels of other devices cannot."""
  others = {"tpu", "gpu"} - {dispatch.backend()}
  return [name for name in table if name not in others]


def _head(size: Size, shape: Shape, rows: int) -> tuple[Array, Array]:
  keys = jax.random.split(jax.random.key(0))
  hidden_RxD = jax.random.normal(keys[0], (rows, shape.width), size.dtype)
  return hidden_RxD, jax.random.normal(keys[1], (shape.vocab, shape.width), size.dtype) * 0.02


def _token_stats(size: Size, shape: Shape) -> list[Work]:
  works = []
  for rows in size.rows:
    hidden_RxD, unembed_VxD = _head(size, shape, rows)
    for case, spec in (
      ("greedy", token_stats.StatSpec()),
      ("entropy, drawn", token_stats.StatSpec(entropy=True, temperature=1.0)),
      ("top-k 50", token_stats.StatSpec(confidence="shaped", top_k=50)),
      ("top-p 0.9", token_stats.StatSpec(confidence="shaped", top_p=0.9)),
    ):
      key_R = jax.random.split(jax.random.key(1), rows) if spec.temperature else None
      names = _implementations(token_stats.IMPLEMENTATIONS)
      if spec.cuts(shape.vocab, token_stats.Inputs()) and rows * shape.vocab > _SORTED:
        names.remove("reference")
      calls = {
        name: functools.partial(
          token_stats.token_stats, spec=spec, key_R=key_R, implementation=name
        )
        for name in names
      }
      nbytes, flops = hidden_RxD.nbytes + unembed_VxD.nbytes, 2.0 * rows * unembed_VxD.size
      inputs = hidden_RxD, unembed_VxD
      works.append(Work(f"{rows} rows, {case}", "reference", calls, inputs, nbytes, flops))
  return works


def _linear_xent(size: Size, shape: Shape) -> list[Work]:
  rows = size.xent_rows
  hidden_RxD, unembed_VxD = _head(size, shape, rows)
  target_R = jax.random.randint(jax.random.key(1), (rows,), 0, shape.vocab)

  def gradients(name: str) -> Callable[..., Any]:
    def loss(hidden_RxD: Array, unembed_VxD: Array) -> Array:
      return linear_xent.linear_xent(hidden_RxD, unembed_VxD, target_R, implementation=name).sum()

    return jax.value_and_grad(loss, (0, 1))

  calls = {name: gradients(name) for name in _implementations(linear_xent.IMPLEMENTATIONS)}
  # Logits once and two products of the backward pass; the gradient of the unembedding is written.
  nbytes, flops = 2 * (hidden_RxD.nbytes + unembed_VxD.nbytes), 6.0 * rows * unembed_VxD.size
  inputs = (hidden_RxD, unembed_VxD)
  return [Work(f"{rows} rows, gradients", "reference", calls, inputs, nbytes, flops)]


def _linear_distill(size: Size, shape: Shape) -> list[Work]:
  """Beside `linear_xent` of the same rows: 4 matmuls where that has 3."""
  rows, width = size.distill or (size.xent_rows, shape.width)
  shape = dataclasses.replace(shape, width=width)
  hidden_RxD, unembed_VxD = _head(size, shape, rows)
  operands = hidden_RxD, unembed_VxD, hidden_RxD[::-1], unembed_VxD[::-1]  # another distribution
  target_R = jax.random.randint(jax.random.key(1), (rows,), 0, shape.vocab)

  def of_teacher(name: str, hidden_RxD: Array, unembed_VxD: Array, *teacher: Array) -> Array:
    return linear_distill.linear_distill(
      hidden_RxD, unembed_VxD, *teacher, linear_distill.Spec(), implementation=name
    ).sum()

  def of_target(hidden_RxD: Array, unembed_VxD: Array, *_: Array) -> Array:
    return linear_xent.linear_xent(hidden_RxD, unembed_VxD, target_R).sum()

  calls = {
    name: jax.value_and_grad(functools.partial(of_teacher, name), (0, 1))
    for name in _implementations(linear_distill.IMPLEMENTATIONS)
  } | {"linear_xent": jax.value_and_grad(of_target, (0, 1))}
  nbytes, flops = 3 * (hidden_RxD.nbytes + unembed_VxD.nbytes), 8.0 * rows * unembed_VxD.size
  case = f"{rows} rows of {width}, gradients"
  return [Work(case, "linear_xent", calls, operands, nbytes, flops)]


def _block_attention(size: Size, shape: Shape) -> list[Work]:
  works = [_decode(size, shape, *each) for each in size.decode]
  length = size.train
  doubled = 2 * length
  training = {
    "full": (length, masks.Full()(_slots(1, length), length), 1.0),
    "block-causal": (length, masks.BlockCausal(size.block)(_slots(1, length), length), 0.5),
    "[noisy; clean]": (doubled, masks.noisy_clean(1, length, size.block), 0.25),
  }
  for case, (width, mask, share) in training.items():
    works.append(_training(size, shape, case, width, mask, share))
  return works


def _slots(batch: int, count: int) -> Array:
  return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))


def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _decode(size: Size, shape: Shape, batch: int, window: int, cached: int) -> Work:
  """A block's queries against the cache and themselves."""
  slots = cached + window
  slot_BxW = cached + _slots(batch, window)
  mask = masks.Full()(slot_BxW, slots)
  keys = [
    block_attention.Keys(slot_BxW),
    block_attention.Keys(_slots(batch, slots), _slots(batch, slots) < cached),
  ]
  own = (batch, window, shape.kv_heads, shape.head_dim)
  past = (batch, slots, shape.kv_heads, shape.head_dim)
  inputs = (
    _normal(0, (batch, window, shape.heads, shape.head_dim), size.dtype),
    *(_normal(i, own, size.dtype) for i in (1, 2)),
    *(_normal(i, past, size.dtype) for i in (3, 4)),
  )

  def call(name: str, q: Array, k: Array, v: Array, past_k: Array, past_v: Array) -> Array:
    sight = _sight(mask, keys, shape, name)
    parts = [block_attention.Part(k, v), block_attention.Part(past_k, past_v)]
    return block_attention.block_attention(q, parts, sight)

  names = _implementations(block_attention.IMPLEMENTATIONS)
  calls = {name: functools.partial(call, name) for name in names}
  nbytes = float(sum(x.nbytes for x in inputs) + inputs[0].nbytes)
  flops = 4.0 * batch * window * slots * shape.heads * shape.head_dim
  case = f"decode, {batch} x {window} queries, {cached} cached"
  return Work(case, "reference", calls, inputs, nbytes, flops)


def _training(size: Size, shape: Shape, case: str, width: int, mask: Mask, share: float) -> Work:
  """Forward and backward over one row; `share`: of query-key pairs that the mask lets through."""
  keys = [block_attention.Keys(_slots(1, width))]
  kv = (1, width, shape.kv_heads, shape.head_dim)
  inputs = (
    _normal(0, (1, width, shape.heads, shape.head_dim), size.dtype),
    *(_normal(i, kv, size.dtype) for i in (1, 2)),
  )

  def ours(name: str, q: Array, k: Array, v: Array) -> Array:
    sight = _sight(mask, keys, shape, name)
    return block_attention.block_attention(q, [block_attention.Part(k, v)], sight)

  def library(implementation: str, q: Array, k: Array, v: Array) -> Array:
    seen_1x1xWxW = block_attention.visible(mask, block_attention.Keys(_slots(1, width)))[:, None]
    return jax.nn.dot_product_attention(
      q, k, v, mask=None if case == "full" else seen_1x1xWxW, implementation=implementation
    )

  forward = {
    n: functools.partial(ours, n) for n in _implementations(block_attention.IMPLEMENTATIONS)
  }
  forward["jax.nn"] = functools.partial(library, "xla")
  if jax.default_backend() == "gpu":
    forward["cuDNN"] = functools.partial(library, "cudnn")

  def gradients(attend: Callable[..., Array]) -> Callable[..., Any]:
    return jax.grad(lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))

  calls = {name: gradients(attend) for name, attend in forward.items()}
  # Two products forward, and of the backward pass five, one of which is a forward one again.
  flops = 14.0 * share * width * width * shape.heads * shape.head_dim
  nbytes = 2.0 * (2 * inputs[0].nbytes + 2 * inputs[1].nbytes)
  return Work(f"gradients, {case}, {width} inputs", "jax.nn", calls, inputs, nbytes, flops)


def _sight(mask: Mask, keys: Sequence[block_attention.Keys], shape: Shape, name: str):
  return block_attention.prepare(
    mask, keys, heads=shape.heads, kv_heads=shape.kv_heads, implementation=name
  )


OPS: dict[str, Callable[[Size, Shape], list[Work]]] = {
  "token_stats": _token_stats,
  "linear_xent": _linear_xent,
  "linear_distill": _linear_distill,
  "block_attention": _block_attention,
}
