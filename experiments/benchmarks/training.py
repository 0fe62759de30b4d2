"""Training: tokens/s, the share of the machine's matmul speed that the model's matmuls reach, and
cross-entropy with and without [rows, vocabulary] logits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dlm import build, roofline
from dlm.train import Step, TrainState
from dlm.types import Array, Batch
from experiments.benchmarks.results import Spread, Table, interleaved, rate, ratio
from kernels_pallas.linear_xent import linear_xent


@dataclasses.dataclass(frozen=True)
class Case:
  """A training run. `vocab`: rows of the embedding; None: the byte tokenizer's 260."""

  objective: str
  preset: str
  batch: int
  length: int
  vocab: int | None = None
  dtype: str = "float32"
  implementation: str | None = None

  def __str__(self) -> str:
    vocab = "" if self.vocab is None else f", vocabulary {self.vocab}"
    kernels = "" if self.implementation is None else f", {self.implementation}"
    return f"{self.objective} {self.preset}, {self.batch} x {self.length}{vocab}{kernels}"

  def step(self) -> Step:
    model = {"preset": self.preset, "dtype": self.dtype, "implementation": self.implementation}
    if self.vocab is not None:
      model["vocab"] = self.vocab
    block = {"block": 16} if self.objective == "bd3lm" else {}
    config = {
      "seed": 0,
      "steps": 1000,
      "batch": self.batch,
      "model": model,
      "objective": {"name": self.objective, **block},
      "data": {"sources": (("stdlib", 1.0),), "length": self.length},
      "optimizer": {"lr": 1e-3, "ema": 0.99},
      "checkpoint": {"keep_best": 0},
    }
    return Step(build.everything(config))


@dataclasses.dataclass(frozen=True)
class Size:
  cases: tuple[Case, ...]
  matmul: tuple[int, ...]  # widths of the square matmuls that look for the peak
  vocabs: tuple[int, ...]  # of the cross-entropy
  rows: int
  width: int
  rounds: int


TINY = Size((Case("mdlm", "1m", 2, 32), Case("bd3lm", "1m", 2, 32)), (64, 128), (300,), 32, 16, 2)
CPU = Size(
  cases=(
    Case("mdlm", "1m", 16, 128),
    Case("bd3lm", "1m", 16, 128),
    Case("mdlm", "3m", 16, 128),
    Case("bd3lm", "3m", 16, 128),
    Case("mdlm", "1m", 16, 128, vocab=32_000),
  ),
  matmul=(512, 1024, 2048),
  vocabs=(260, 8_000, 32_000),
  rows=1024,
  width=192,
  rounds=5,
)
ACCELERATOR = Size(
  cases=(
    Case("mdlm", "100m", 64, 1024, 32_000, "bfloat16"),
    Case("bd3lm", "100m", 32, 1024, 32_000, "bfloat16"),
    Case("mdlm", "300m", 32, 1024, 32_000, "bfloat16"),
    Case("bd3lm", "300m", 16, 1024, 32_000, "bfloat16"),
  ),
  matmul=(4096, 8192, 16384),
  vocabs=(32_000, 128_000, 152_000),
  rows=8192,
  width=1024,
  rounds=20,
)


MATMUL_SECONDS = 0.3  # a round


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  return [updates(chosen), _cross_entropy(chosen)]


def updates(size: Size) -> Table:
  peaks = {}
  rows = []
  for case in size.cases:
    if case.dtype not in peaks:
      peaks[case.dtype] = _peak(size, case.dtype)
    width, matmuls, matmul = peaks[case.dtype]
    step = case.step()
    seconds, _ = interleaved({"matmul": matmul, "update": _updating(step)}, size.rounds)
    flops, peak_flops = step.flops(), matmuls * 2 * width**3
    rows.append(
      {
        "share of peak": Spread.of(
          [
            flops / update / (peak_flops / matmul)
            for update, matmul in zip(seconds["update"], seconds["matmul"], strict=True)
          ]
        ),
        "case": str(case),
        "tokens/s": rate(case.batch * case.length, seconds["update"]),
        "flop/s": rate(flops, seconds["update"]),
        "MFU": _mfu(flops, seconds["update"]),
        "peak flop/s": rate(peak_flops, seconds["matmul"]),
        "matmul": f"{width} {case.dtype}",
      }
    )
  note = "matmul flops of an update per second / flop/s of one square matmul, in the same round"
  return Table("training", note, rows)


def _mfu(flops: float, seconds: list[float]) -> str | Spread:
  """Over the peak that the maker states for products in bfloat16."""
  chip = roofline.named(jax.devices()[0].device_kind)
  return "no stated peak" if chip is None else rate(flops / chip.bf16, seconds)


def _peak(size: Size, dtype: str) -> tuple[int, int, Callable[[], list[Array]]]:
  """The fastest of the square matmuls: its width, and so many of them as take about as long as an
  update, since what disturbs the machine is not even over shorter times."""
  calls = {}
  for width in size.matmul:
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (width, width), dtype) for key in keys)
    calls[width] = _compiled(jnp.matmul, a, b)
  seconds, _ = interleaved(calls, size.rounds)
  best = max(calls, key=lambda width: width**3 / min(seconds[width]))
  matmuls = max(1, round(MATMUL_SECONDS / min(seconds[best])))
  return best, matmuls, lambda: [calls[best]() for _ in range(matmuls)]


def _updating(step: Step) -> Callable[[], TrainState]:
  """One update after another, of one batch."""
  state = step.init()
  batch = Batch(*map(jnp.asarray, step.training.rows[0]))

  def update() -> TrainState:
    nonlocal state  # it is donated
    state, *_ = step.update(state, batch)
    return state

  jax.block_until_ready(update())
  return update


def _cross_entropy(size: Size) -> Table:
  rows = []
  for vocab in size.vocabs:
    key_hidden, key_unembed, key_target = jax.random.split(jax.random.key(0), 3)
    hidden_RxD = jax.random.normal(key_hidden, (size.rows, size.width))
    unembed_VxD = jax.random.normal(key_unembed, (vocab, size.width)) * size.width**-0.5
    target_R = jax.random.randint(key_target, (size.rows,), 0, vocab)
    args = hidden_RxD, unembed_VxD, target_R
    ours, naive = (
      jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*args).compile()
      for total in (_linear_xent_total, _naive_total)
    )
    calls = {"ours": lambda f=ours, a=args: f(*a), "naive": lambda f=naive, a=args: f(*a)}
    for call in calls.values():
      jax.block_until_ready(call())
    seconds, _ = interleaved(calls, 2 * size.rounds)
    rows.append(
      {
        "speed-up": ratio(seconds["naive"], seconds["ours"]),
        "case": f"{size.rows} rows, width {size.width}, vocabulary {vocab}",
        "ours, s": Spread.of(seconds["ours"]),
        "naive, s": Spread.of(seconds["naive"]),
        "ours, temporary B": float(ours.memory_analysis().temp_size_in_bytes),
        "naive, temporary B": float(naive.memory_analysis().temp_size_in_bytes),
      }
    )
  note = "value and gradient: seconds with [rows, vocabulary] logits / seconds of linear_xent"
  return Table("cross-entropy", note, rows)


def _linear_xent_total(hidden_RxD: Array, unembed_VxD: Array, target_R: Array) -> Array:
  return linear_xent(hidden_RxD, unembed_VxD, target_R).sum()


def _naive_total(hidden_RxD: Array, unembed_VxD: Array, target_R: Array) -> Array:
  log_p_RxV = jax.nn.log_softmax(hidden_RxD @ unembed_VxD.T)
  return -jnp.take_along_axis(log_p_RxV, target_R[:, None], axis=1).sum()


def _compiled(fn: Callable, *args: Any) -> Callable[[], Any]:
  """`fn(*args)`, compiled and run once."""
  compiled = jax.jit(fn).lower(*args).compile()
  jax.block_until_ready(compiled(*args))
  return lambda: compiled(*args)
