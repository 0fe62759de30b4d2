"""Decoding methods on one random model; on CPUs the plain loop against its own products, and the
plain loop and blocks behind a cache against PyTorch.

The parameters are random, so accuracy means nothing here: forwards, tokens per forward and tokens
per second do. `experiments/studies/compare.py` measures accuracy, on a trained model.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.models import ModelConfig, bind, from_preset
from dlm.models.apart import apart
from dlm.sampling import caching, loop, policies
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.types import Array, Canvas, Params
from experiments.benchmarks import block
from experiments.benchmarks.results import Row, Table, interleaved, rate, ratio


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  batch: int
  prompt: int
  new: int
  block: int
  rounds: int
  only: tuple[str, ...] = ()  # methods; (): all


@dataclasses.dataclass(frozen=True)
class Cached:
  """A model that is block-causal: blocks behind a cache, two tokens a forward."""

  model: ModelConfig
  prompt: int
  new: int
  blocks: tuple[int, ...]
  rounds: int


TINY = Size(
  ModelConfig(vocab=37, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  batch=2, prompt=8, new=16, block=8, rounds=1,
  only=("LLaDA, a token a forward", "dual cache", "threshold 0.9"),
)  # fmt: skip
CPU = Size(
  from_preset("100m", vocab=32_000, tied=False, layers=10),
  batch=1, prompt=32, new=32, block=16, rounds=3,
)  # fmt: skip
CACHED_TINY = Cached(TINY.model, prompt=16, new=16, blocks=(8,), rounds=1)
CACHED_CPU = Cached(
  from_preset("1b", vocab=32_000), prompt=128, new=32, blocks=(8, 16, 32), rounds=3
)
ACCELERATOR = Size(
  from_preset("300m", vocab=126_464, tied=False),
  batch=8, prompt=256, new=256, block=32, rounds=5,
)  # fmt: skip


def methods(size: Size) -> dict[str, tuple[Policy, CachePlan]]:
  """Name -> policy and cache. The first is what all others are compared with."""
  block, none, dual = size.block, caching.NoCache(), caching.Dual()
  fixed = policies.Fixed(steps=block)
  return {
    "LLaDA, a token a forward": (fixed, none),
    "LLaDA, two": (policies.Fixed(steps=block // 2), none),
    "prefix cache": (fixed, caching.Prefix()),
    "dual cache": (fixed, dual),
    "vicinity": (fixed, caching.PLANS["vicinity"]()),
    "dKV-Cache decode": (fixed, caching.PLANS["dkv_decode"](4)),
    "threshold 0.9": (policies.Threshold(0.9), none),
    "threshold 0.9, dual": (policies.Threshold(0.9), dual),
    "factor 1": (policies.Factor(1.0), none),
    "CD4LM": (policies.Cad(0.95, least=1, most=block), none),
    "Saber": (policies.Saber(2), none),
    "hierarchy": (policies.POLICIES["hierarchy"](0.9, 0.3), none),
  }


def run(size: str) -> Iterator[Table]:
  on_cpu = jax.default_backend() == "cpu"
  chosen = TINY if size == "tiny" else CPU if on_cpu else ACCELERATOR
  with jax.default_matmul_precision("highest"):
    params = _params(chosen.model)
    yield Table("methods", "seconds of LLaDA's loop / seconds", _methods(chosen, params))
    if on_cpu:
      note = "seconds of LLaDA's loop / seconds of its products alone"
      yield Table("products", note, _products(chosen, params))
      note = "seconds in PyTorch / seconds, LLaDA's loop"
      yield Table("PyTorch", note, _torch(chosen, params))
      note = "seconds in PyTorch / seconds, blocks behind a cache"
      cached = CACHED_TINY if size == "tiny" else CACHED_CPU
      yield Table("PyTorch, cached", note, _cached(cached, _params(cached.model)))


def _params(model: ModelConfig) -> Params:
  """Random, and sharper than at birth: confidences spread over (0, 1), as thresholds need."""
  params = jax.jit(bind(model).init)(jax.random.key(0))
  return apart(params | {"final_norm": {"scale": 6 * params["final_norm"]["scale"]}})


def _methods(size: Size, params: Params) -> list[Row]:
  calls = {}
  for name, (policy, plan) in methods(size).items():
    if size.only and name not in size.only:
      continue
    compiled = _compiled(size, params, policy, plan)
    calls[name] = functools.partial(compiled, params, _canvas(size))
    jax.block_until_ready(calls[name]())
  seconds, done = interleaved(calls, size.rounds)
  base = next(iter(calls))
  return [
    {
      "speed-up": ratio(seconds[base], seconds[name]),
      "method": name,
      "tokens/s": rate(size.batch * size.new, seconds[name]),
      "forwards": float(done[name].forwards_Bx3.sum(-1).mean()),
      "tokens/forward": size.batch * size.new / float(done[name].forwards_Bx3.sum()),
      "queries/token": float(done[name].queries_B.sum()) / (size.batch * size.new),
    }
    for name in calls
  ]


def _products(size: Size, params: Params) -> list[Row]:
  """The loop beside what its matmuls take, those of attention too, with nothing in between."""
  canvas, steps = _canvas(size), size.block // 2
  loop_ = _compiled(size, params, policies.Fixed(steps=steps), caching.NoCache())
  forwards = size.new // size.block * steps
  products = jax.jit(_matmuls, static_argnums=(0, 1))
  x_BxLxD = jax.random.normal(jax.random.key(1), (*canvas.tokens_BxL.shape, size.model.width))
  calls = {
    "products": functools.partial(products, size, forwards, params, x_BxLxD),
    "loop": functools.partial(loop_, params, canvas),
  }
  for call in calls.values():
    jax.block_until_ready(call())
  seconds, done = interleaved(calls, size.rounds)
  counted = float(done["loop"].forwards_Bx3.sum(-1).mean())
  assert counted == forwards, f"the loop took {counted} forwards, its products {forwards}"
  return [
    {
      "of its products": ratio(seconds["loop"], seconds[name]),
      "case": name,
      "forwards": float(forwards),
      "a forward": rate(forwards, seconds[name]),
    }
    for name in calls
  ]


def _matmuls(size: Size, forwards: int, params: Params, x_BxLxD: Array) -> Array:
  config, layers = size.model, params["layers"]
  groups = config.heads // config.kv_heads

  def forward(_: int, last: Array) -> Array:
    # What came before is added far below the last digit: so products wait for each other, and stay
    # of one size.
    for layer in range(config.layers):
      kernels = layers["attention"] | layers["mlp"]
      w = {name: leaf["kernel"][layer] for name, leaf in kernels.items()}
      x = x_BxLxD + 1e-30 * last
      q, k, v = (jnp.einsum("bld,dnh->blnh", x, w[name]) for name in ("query", "key", "value"))
      q = q.reshape(*q.shape[:2], config.kv_heads, groups, -1)
      seen = jnp.einsum("bkgls,bskh->blkgh", jnp.einsum("blkgh,bskh->bkgls", q, k), v)
      last = jnp.einsum("blnh,nhd->bld", seen.reshape(*x.shape[:2], config.heads, -1), w["out"])
      x = x_BxLxD + 1e-30 * last
      gate, up = (x @ w[name] for name in ("gate", "up"))
      last = (gate + up) @ w["down"]
    x_BxAxD = x_BxLxD[:, : size.block] + 1e-30 * last[:, : size.block]
    unembed_VxD = params.get("unembed", params["embed"])
    return last + 1e-30 * (x_BxAxD @ unembed_VxD.T).max()

  return jax.lax.fori_loop(0, forwards, forward, jnp.zeros_like(x_BxLxD))


def _torch(size: Size, params: Params) -> list[Row]:
  """In float32 and in bfloat16, as a checkpoint of that is held."""
  rows = []
  for dtype in ("float32", "bfloat16"):
    own = dataclasses.replace(size, model=dataclasses.replace(size.model, dtype=dtype))
    rows += _plain(own, jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), params))
  return rows


def _plain(size: Size, params: Params) -> list[Row]:
  steps, mask_id = size.block // 2, size.model.vocab - 1
  canvas = _canvas(size)
  prompt_BxP = np.asarray(canvas.tokens_BxL)[:, : size.prompt]
  compiled = _compiled(size, params, policies.Fixed(steps=steps), caching.NoCache())

  def theirs(baseline):
    return baseline.generate(prompt_BxP, size.new, size.block, steps, mask_id)

  cases = {f"{size.model.dtype}, ": (functools.partial(compiled, params, canvas), theirs)}
  return _against_torch(size.model, params, cases, size.prompt, size.batch * size.new, size.rounds)


def _cached(size: Cached, params: Params) -> list[Row]:
  mask_id, cases = size.model.vocab - 1, {}
  prompt_1xP = np.random.default_rng(0).integers(0, mask_id, (1, size.prompt), np.int32)
  for length in size.blocks:
    method = block.Method(policies.Fixed(steps=length // 2), caching.ExactBlock(), "separate")
    sampler = method.sampler(bind(size.model), masks.BlockCausal(length), length, mask_id)
    canvas = block.canvas_of(list(prompt_1xP), size.prompt + size.new, length, mask_id)
    program = jax.jit(loop.run, static_argnums=0).lower(sampler, params, canvas).compile()

    def theirs(baseline, length=length):
      return baseline.generate_behind_cache(prompt_1xP, size.new, length, length // 2, mask_id)

    cases[f"blocks of {length}, "] = functools.partial(program, params, canvas), theirs
  return _against_torch(size.model, params, cases, size.prompt, size.new, size.rounds)


def _against_torch(
  model: ModelConfig, params: Params, cases: dict, prompt: int, written: int, rounds: int
) -> list[Row]:
  """Of each case what we call, and what a baseline of the same weights is asked for."""
  if importlib.util.find_spec("torch") is None:
    return [{"speed-up": "torch is not installed", "case": "pip install -e '.[torch]'"}]
  from experiments.benchmarks.torch_llada import Llada

  baseline, rows = Llada(model, params), []
  for case, (ours, theirs) in cases.items():
    calls = {"dlm": ours, "PyTorch": functools.partial(theirs, baseline)}
    for call in calls.values():
      jax.block_until_ready(call())
    seconds, done = interleaved(calls, rounds)
    same = (np.asarray(done["dlm"].tokens_BxL) == done["PyTorch"])[:, prompt:].mean()
    rows += [
      {
        "speed-up": ratio(seconds["PyTorch"], seconds[name]),
        "case": case + name,
        "tokens/s": rate(written, seconds[name]),
        "forwards": float(done["dlm"].forwards_Bx3.sum(-1).mean()),
        "equal tokens": float(same),
      }
      for name in calls
    ]
  return rows


def _compiled(size: Size, params: Params, policy: Policy, plan: CachePlan):
  sampler = Sampler(
    denoise=bind(size.model),
    policy=policy,
    plan=plan,
    sees=masks.Full(),
    block=size.block,
    max_forwards=4 * size.new,
    mask_id=size.model.vocab - 1,
  )
  return jax.jit(loop.run, static_argnums=0).lower(sampler, params, _canvas(size)).compile()


def _canvas(size: Size) -> Canvas:
  slots = size.prompt + size.new
  shape, rng = (size.batch, slots), np.random.default_rng(0)
  tokens_BxL = rng.integers(0, size.model.vocab - 1, shape, np.int32)
  return make_canvas(
    list(tokens_BxL),
    [np.arange(slots) >= size.prompt] * size.batch,
    list(range(size.batch)),
    slots=slots,
    block=size.block,
    align="prompt",
    mask_id=size.model.vocab - 1,
    seed=0,
  )
