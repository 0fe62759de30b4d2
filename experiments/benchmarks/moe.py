"""Experts: whether compute that is saved is time that is saved, and what choosing costs.

Time against FLOPs as each token gets more experts, experts that choose against tokens that choose,
a forward whose capacity follows the noise level, and what gather and scatter take of it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlm import build, masks
from dlm.models import ModelConfig, MoeConfig, bind
from dlm.models.moe.experts import Experts, Slots, apply_slots
from dlm.models.moe.layer import Moe
from dlm.train import Step, TrainState
from dlm.types import Array, Batch
from experiments.benchmarks.results import Row, Spread, Table, interleaved, rate, ratio


@dataclasses.dataclass(frozen=True)
class Size:
  model: dict[str, Any]  # of a model table, without its experts
  experts: int
  mlp: int
  rows: int
  length: int
  swept: tuple[int, ...]  # experts a token
  per_token: int  # where it is not swept
  levels: tuple[float, ...]
  widths: tuple[tuple[int, int], ...]  # of tokens and experts, where gathers are timed
  rounds: int


TINY = Size(
  dict(width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp=16),
  experts=4, mlp=8, rows=2, length=32, swept=(1, 2), per_token=2, levels=(1.0, 0.1),
  widths=((16, 8),), rounds=2,
)  # fmt: skip
CPU = Size(
  dict(width=128, layers=4, heads=4, kv_heads=4, head_dim=32, mlp=128),
  experts=16, mlp=128, rows=16, length=128, swept=(1, 2, 4, 8), per_token=4,
  levels=(1.0, 0.5, 0.1), widths=((128, 128), (512, 64), (512, 384)), rounds=5,
)  # fmt: skip
ACCELERATOR = Size(
  dict(width=1024, layers=8, heads=16, kv_heads=16, head_dim=64, mlp=512, dtype="bfloat16"),
  experts=64, mlp=512, rows=32, length=1024, swept=(2, 4, 8, 16), per_token=8,
  levels=(1.0, 0.5, 0.1), widths=((512, 384), (2048, 512), (2048, 1408)), rounds=20,
)  # fmt: skip

Update = tuple[Callable[[], TrainState], float, int]  # a call, its matmul FLOPs, temporary bytes

BEST = "experts choose"


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  update = functools.cache(functools.partial(_update, chosen))  # two tables have one in common
  return [*_swept(chosen, update), _choices(chosen, update), _by_noise(chosen), _gathers(chosen)]


def _swept(size: Size, update: Callable[[MoeConfig], Update]) -> list[Table]:
  """Static k: one layer over few tokens and over a batch of them, and whole updates."""
  rows: list[Row] = []
  slopes: list[Row] = []
  for name, count in {"layer": 1, "layers": size.rows, "update": size.rows}.items():
    calls, flops = {}, {}
    for k in size.swept:
      moe = _moe(size, per_token=k)
      if name == "update":
        calls[k], flops[k], _ = update(moe)
      else:
        calls[k], flops[k] = _layer(size, moe, count)
    case = f"{'update' if name == 'update' else 'one layer'}, {count} x {size.length}"
    seconds, _ = interleaved(calls, size.rounds)
    rows += _against_flops(size, case, count * size.length, seconds, flops)
    slopes.append({"slope": _slope(seconds, flops), "case": case})
  note = "seconds a FLOP / those with the fewest experts a token; forward and backward"
  note_slope = "of log seconds over log FLOPs; 1: compute that is saved is time that is saved"
  return [Table("time follows capacity", note, rows), Table("slopes", note_slope, slopes)]


def _against_flops(
  size: Size,
  case: str,
  tokens: int,
  seconds: Mapping[int, Sequence[float]],
  flops: Mapping[int, float],
) -> list[Row]:
  first = min(seconds)

  def per_flop(k: int) -> list[float]:
    return [each / flops[k] for each in seconds[k]]

  return [
    {
      "seconds a FLOP": ratio(per_flop(k), per_flop(first)),
      "case": f"{case}, {k} of {size.experts}",
      "tokens an expert": tokens * k // size.experts,
      "seconds": Spread.of(seconds[k]),
      "seconds of the fewest": ratio(seconds[k], seconds[first]),
      "flops of the fewest": flops[k] / flops[first],
      "flop/s": rate(flops[k], seconds[k]),
    }
    for k in seconds
  ]


def _slope(seconds: Mapping[int, Sequence[float]], flops: Mapping[int, float]) -> Spread:
  """Least squares, round by round."""
  x = np.log([flops[k] for k in seconds])
  return Spread.of(
    [float(np.polyfit(x, np.log(y), 1)[0]) for y in zip(*seconds.values(), strict=True)]
  )


def _moe(size: Size, **changes: Any) -> MoeConfig:
  """Experts that choose, unless told otherwise."""
  fields = dict(experts=size.experts, mlp=size.mlp, per_token=size.per_token, renormalise=True)
  return MoeConfig(**fields | dict(choice="expert") | changes)


def _layer(size: Size, moe: MoeConfig, rows: int) -> tuple[Callable[[], Any], float]:
  """Value and gradient of one layer, and their matmul FLOPs."""
  config = ModelConfig(vocab=260, **size.model, moe=moe)
  layer, tokens = Moe(config, 1.0), rows * size.length
  key_params, key_x = jax.random.split(jax.random.key(0))
  x_BxWxD = jax.random.normal(key_x, (rows, size.length, config.width), config.dtype)
  live_BxW = jnp.ones((rows, size.length), bool)
  params = jax.jit(layer.init)(key_params, x_BxWxD, live_BxW, None)

  def total(params: Any, x_BxWxD: Array) -> Array:
    y_BxWxD, _ = layer.apply(params, x_BxWxD, live_BxW, None)
    return jnp.square(y_BxWxD.astype(jnp.float32)).sum()

  call = _compiled(jax.value_and_grad(total, argnums=(0, 1)), params, x_BxWxD)
  active = 3 * moe.mlp * moe.per_token + moe.experts
  return call, 6.0 * tokens * config.width * active


def _update(size: Size, moe: MoeConfig) -> Update:
  """One update after another of one batch."""
  config = {
    "seed": 0,
    "steps": 1000,
    "batch": size.rows,
    "model": {**size.model, "moe": dataclasses.asdict(moe)},
    "objective": {"name": "ec_dlm"},
    "data": {"sources": (("stdlib", 1.0),), "length": size.length},
    "optimizer": {"lr": 1e-3},
    "checkpoint": {"keep_best": 0},
  }
  step = Step(build.everything(config))
  state = step.init()
  batch = Batch(*map(jnp.asarray, step.training.rows[0]))
  program = step.update.lower(state, batch).compile()

  def update() -> TrainState:
    nonlocal state  # it is donated
    state, *_ = program(state, batch)
    return state

  jax.block_until_ready(update())
  return update, step.flops(), program.memory_analysis().temp_size_in_bytes


def _choices(size: Size, update: Callable[[MoeConfig], Update]) -> Table:
  """Who chooses, at equal FLOPs."""
  every = size.experts / size.per_token
  kinds = {
    BEST: _moe(size),
    "tokens choose, dropless": _moe(size, choice="token"),
    "tokens choose, capacity 1.25": _moe(size, choice="token", capacity_factor=1.25),
    "tokens choose, a place for all": _moe(size, choice="token", capacity_factor=every),
  }
  calls, flops, bytes_ = {}, {}, {}
  for name, moe in kinds.items():
    calls[name], flops[name], bytes_[name] = update(moe)
  seconds, _ = interleaved(calls, size.rounds)
  rows: list[Row] = [
    {
      "speed-up": ratio(seconds[name], seconds[BEST]),
      "over": name,
      "tokens/s": rate(size.rows * size.length, seconds[name]),
      "flop an update": flops[name],
      "temporary B": float(bytes_[name]),
    }
    for name in calls
  ]
  note = f"seconds of an update / seconds of one with {BEST}, at equal FLOPs"
  return Table("who chooses", note, rows)


def _by_noise(size: Size) -> Table:
  """A forward of the sampler's without a cache, all rows at one mask ratio."""
  least, most = 1, 2 * size.per_token - 1
  slot_BxW = jnp.broadcast_to(jnp.arange(size.length), (size.rows, size.length))
  tokens_BxW = jnp.zeros_like(slot_BxW)
  calls = {}
  for schedule in ("static", "linear", "linear_reverse"):
    ends = None if schedule == "static" else (least, most)
    moe = _moe(size, schedule=schedule, per_token_range=ends)
    model = bind(ModelConfig(vocab=260, **size.model, moe=moe))
    params = jax.jit(model.init)(jax.random.key(0))

    def forward(params: Any, level: Array, model: Any = model) -> Array:
      mask = masks.Full()(slot_BxW, size.length)
      time_BxW = jnp.broadcast_to(level, slot_BxW.shape)
      out = model(params, tokens_BxW, slot_BxW=slot_BxW, mask=mask, time_BxW=time_BxW)
      return out.head.hidden_BxAxD

    program = jax.jit(forward).lower(params, jnp.float32(0)).compile()
    for level in size.levels:
      calls[schedule, level] = functools.partial(program, params, jnp.float32(level))
      jax.block_until_ready(calls[schedule, level]())
  seconds, _ = interleaved(calls, 2 * size.rounds)
  rows: list[Row] = [
    {
      "speed-up": ratio(seconds["static", level], seconds[schedule, level]),
      "case": f"{schedule}, {level:g} masked",
      "seconds": Spread.of(seconds[schedule, level]),
      "tokens/s": rate(size.rows * size.length, seconds[schedule, level]),
    }
    for schedule, level in calls
  ]
  note = f"seconds with {size.per_token} experts a token / seconds with {least} to {most} by noise"
  return Table("capacity by noise", note, rows)


def _gathers(size: Size) -> Table:
  """What a kernel that gathers while it multiplies could save at the most."""
  rows: list[Row] = []
  tokens = size.rows * size.length
  places = tokens * size.per_token // size.experts
  dtype = size.model.get("dtype", "float32")
  rng = np.random.default_rng(0)
  token = np.stack([rng.permutation(tokens)[:places] for _ in range(size.experts)])
  gates = jnp.asarray(rng.uniform(size=token.shape), jnp.float32)
  slots = Slots(jnp.asarray(token), gates, jnp.int32(places))
  for width, mlp in size.widths:
    inward, outward = (size.experts, width, mlp), (size.experts, mlp, width)
    shapes = (inward, inward, outward, (tokens, width), (*token.shape, width))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    *kernels, x_TxD, x_ExCxD = (
      jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    experts = Experts(*kernels)
    calls = {
      "gather": _compiled(lambda x, slots: x[slots.token_ExC], x_TxD, slots),
      "products": _compiled(_products, x_ExCxD, experts),
      "scatter": _compiled(functools.partial(_scatter, tokens), x_ExCxD, slots),
      "apply_slots": _compiled(
        lambda x, slots, experts: apply_slots(x, slots, experts, (places,)), x_TxD, slots, experts
      ),
    }
    seconds, _ = interleaved(calls, 2 * size.rounds)
    moved = [a + b for a, b in zip(seconds["gather"], seconds["scatter"], strict=True)]
    rows.append(
      {
        "gather + scatter": ratio(moved, seconds["apply_slots"]),
        "case": f"{tokens} tokens of {width}, {size.experts} experts of {mlp}",
        **{f"{name}, s": Spread.of(each) for name, each in seconds.items()},
      }
    )
  note = "seconds of the two by themselves / seconds of apply_slots, a forward"
  return Table("gather, products, scatter", note, rows)


def _products(x_ExCxD: Array, experts: Experts) -> Array:
  hidden_ExCxF = jax.nn.silu(x_ExCxD @ experts.gate_ExDxF) * (x_ExCxD @ experts.up_ExDxF)
  return hidden_ExCxF @ experts.down_ExFxD


def _scatter(tokens: int, y_ExCxD: Array, slots: Slots) -> Array:
  sums_TxD = jnp.zeros((tokens, y_ExCxD.shape[-1]), jnp.float32)
  sums_TxD = sums_TxD.at[slots.token_ExC].add(y_ExCxD * slots.gates_ExC[:, :, None])
  return sums_TxD.astype(y_ExCxD.dtype)


def _compiled(fn: Callable, *args: Any) -> Callable[[], Any]:
  """`fn(*args)`, compiled and run once."""
  program = jax.jit(fn).lower(*args).compile()
  jax.block_until_ready(program(*args))
  return functools.partial(program, *args)
