"""Decoding methods on one random model, and the plain LLaDA loop against PyTorch.

The parameters are random, so accuracy means nothing here: forwards, tokens per forward and tokens
per second do. `experiments/studies/compare.py` measures accuracy, on a trained model.
"""

import dataclasses
import functools
import importlib.util

import jax
import numpy as np

from dlm import masks
from dlm.models import ModelConfig, bind, from_preset
from dlm.sampling import caching, loop, policies
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.types import Canvas, Params
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


TINY = Size(
  ModelConfig(vocab=37, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  batch=2, prompt=8, new=16, block=8, rounds=1,
  only=("LLaDA, a token a forward", "dual cache", "threshold 0.9"),
)  # fmt: skip
CPU = Size(
  from_preset("100m", vocab=32_000, tied=False, layers=10),
  batch=1, prompt=32, new=32, block=16, rounds=3,
)  # fmt: skip
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


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  with jax.default_matmul_precision("highest"):
    model = bind(chosen.model)
    params = jax.jit(model.init)(jax.random.key(0))
    # Sharper than at birth: confidences spread over (0, 1), as thresholds need.
    params = params | {"final_norm": {"scale": 6 * params["final_norm"]["scale"]}}
    return [
      Table("methods", "seconds of LLaDA's loop / seconds", _methods(chosen, params)),
      Table("PyTorch", "seconds in PyTorch / seconds, LLaDA's loop", _torch(chosen, params)),
    ]


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


def _torch(size: Size, params: Params) -> list[Row]:
  if importlib.util.find_spec("torch") is None:
    return [{"speed-up": "torch is not installed", "case": "pip install -e '.[torch]'"}]
  from experiments.benchmarks.torch_llada import Llada

  steps, mask_id = size.block // 2, size.model.vocab - 1
  baseline = Llada(size.model, params)
  canvas = _canvas(size)
  prompt_BxP = np.asarray(canvas.tokens_BxL)[:, : size.prompt]
  compiled = _compiled(size, params, policies.Fixed(steps=steps), caching.NoCache())
  calls = {
    "dlm": functools.partial(compiled, params, canvas),
    "PyTorch": lambda: baseline.generate(prompt_BxP, size.new, size.block, steps, mask_id),
  }
  for call in calls.values():
    jax.block_until_ready(call())
  seconds, done = interleaved(calls, size.rounds)
  same = float((np.asarray(done["dlm"].tokens_BxL) == done["PyTorch"])[:, size.prompt :].mean())
  return [
    {
      "speed-up": ratio(seconds["PyTorch"], seconds[name]),
      "case": name,
      "tokens/s": rate(size.batch * size.new, seconds[name]),
      "equal tokens": same,
    }
    for name in calls
  ]


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
