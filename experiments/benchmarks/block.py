"""Block-causal and drafting samplers against autoregressive decoding with a cache.

"random": one random model, so that only forwards and seconds mean something; attention is the
sampler's own, causal or block-causal. "trained": small models of list problems, trained here in a
minute or two, where tokens per forward mean something too: causal with masks to propose at (I-DLM)
against itself token by token, and block diffusion against itself a token a forward.
"""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import numpy as np

from dlm import build, checkpoint, masks, train
from dlm.data import open_source
from dlm.models import Model, ModelConfig, bind, from_preset
from dlm.sampling import caching, loop, policies
from dlm.sampling.caching.plan import CachePlan
from dlm.sampling.canvas import make_canvas
from dlm.sampling.policy import Policy
from dlm.sampling.sampler import Sampler
from dlm.types import Canvas, MaskRule, Params
from experiments.benchmarks.results import Row, Table, interleaved, rate, ratio

CONFIG = "configs/train/convert.py"


@dataclasses.dataclass(frozen=True)
class Size:
  model: ModelConfig
  batches: tuple[int, ...]
  prompt: int
  new: int
  block: int
  rounds: int
  steps: int  # of training
  methods: int | None = None  # the first so many of each kind; None: all
  changes: tuple[str, ...] = ()  # to the config that is trained


TINY = Size(
  ModelConfig(vocab=37, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32),
  batches=(2,), prompt=8, new=8, block=4, rounds=1, steps=2, methods=2,
  changes=("batch=4", "model.layers=1", "model.width=16", "model.mlp=16", "eval.every=0"),
)  # fmt: skip
CPU = Size(
  from_preset("100m", vocab=32_000, tied=False, layers=10),
  batches=(1, 4, 16), prompt=32, new=16, block=8, rounds=3, steps=500,
)  # fmt: skip
ACCELERATOR = Size(
  from_preset("300m", vocab=126_464, tied=False),
  batches=(1, 4, 16), prompt=256, new=256, block=32, rounds=5, steps=500,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Method:
  policy: Policy
  plan: CachePlan
  commit: str = "fused"

  def sampler(self, model: Model, sees: MaskRule, block: int, mask_id: int) -> Sampler:
    return Sampler(
      denoise=model,
      policy=self.policy,
      plan=self.plan,
      sees=sees,
      block=self.policy.draft_span or block,
      max_forwards=1_000_000,
      mask_id=mask_id,
      shift=int(isinstance(sees, masks.Causal)),
      commit=self.commit,
    )


AR = "autoregressive, cached"
CAUSAL = {
  AR: Method(policies.Introspective(1), caching.Rolling()),
  "I-DLM, stride 4": Method(policies.Introspective(4), caching.Rolling()),
  "I-DLM, stride 4, top 5 kept": Method(policies.Introspective(4, "kept"), caching.Rolling()),
}


def in_blocks(block: int) -> dict[str, Method]:
  one, sure = policies.Quota(block, block), policies.Quota(block, block, 0.9)
  exact, half = caching.ExactBlock(), max(block // 2, 1)
  ahead = policies.Pipelined(block, 0.9, begin=0.5)
  return {
    "SDAR static, a token a forward": Method(one, exact),
    "SDAR dynamic 0.9, separate commits": Method(sure, exact, "separate"),
    "SDAR dynamic 0.9, fused commits": Method(sure, exact),
    "LLaDA2.1 editing, free commits": Method(policies.Edit(0.7, 0.5), exact, "free"),
    "Fast-dLLM v2 parts, both caches": Method(
      policies.Parts(sure, half), caching.SubBlock(half), "separate"
    ),
    "D2F pipelined": Method(ahead, caching.Ahead()),
  }


def run(size: str) -> list[Table]:
  chosen = TINY if size == "tiny" else CPU if jax.default_backend() == "cpu" else ACCELERATOR
  causal, blocks = masks.Causal(), masks.BlockCausal(chosen.block)
  methods = _chosen(chosen, CAUSAL, causal) | _chosen(chosen, in_blocks(chosen.block), blocks)
  model = bind(chosen.model)
  params = jax.jit(model.init)(jax.random.key(0))
  # Sharper than at birth: confidences spread over (0, 1), as thresholds need.
  params = params | {"final_norm": {"scale": 6 * params["final_norm"]["scale"]}}
  mask_id = chosen.model.vocab - 1
  rows = []
  for batch in chosen.batches:
    rng, slots = np.random.default_rng(0), chosen.prompt + chosen.new
    prompts = rng.integers(0, mask_id, (batch, chosen.prompt), np.int32)
    canvas = canvas_of(list(prompts), slots, chosen.block, mask_id)
    rows += _measured(methods, model, params, canvas, chosen.block, mask_id, chosen.rounds)
  note = "seconds of autoregressive decoding / seconds"
  tables = [Table("random", note, rows)]
  with tempfile.TemporaryDirectory() as folder:
    causal = _trained(chosen, pathlib.Path(folder), "causal", CAUSAL)
    tables.append(Table("trained, causal", note, causal))
    own = _trained(chosen, pathlib.Path(folder), "blocks", in_blocks(8))
    tables.append(Table("trained, blocks of 8", "seconds of a token a forward / seconds", own))
  return tables


def _chosen(
  size: Size, kinds: dict[str, Method], sees: MaskRule
) -> dict[str, tuple[Method, MaskRule]]:
  return {name: (method, sees) for name, method in list(kinds.items())[: size.methods]}


def _trained(size: Size, folder: pathlib.Path, kind: str, kinds: dict[str, Method]) -> list[Row]:
  """Trains on list problems and decodes held-out ones, whose answers fill two blocks of 8."""
  fields = [f"steps={size.steps}", f"optimizer.warmup={min(50, size.steps // 2)}", *size.changes]
  if kind == "causal":
    fields += ["objective.name=i_dlm", "objective.block=4"]
  config = f"{CONFIG}:{'ar' if kind == 'causal' else 'clean'}"
  training = build.everything(build.RunConfig.read(config, fields))
  train.train(training, folder / kind)
  params, _ = checkpoint.restore_params(folder / kind, "latest")
  (_, _, options), *_ = training.run.data.sources
  source = open_source("lists", "test", **{k: v for k, v in options if k not in ("mode", "pad")})
  encode, mask_id = training.tokenizer.encode, training.facts.mask_id
  sees = masks.Causal() if kind == "causal" else masks.BlockCausal(8)
  methods = _chosen(size, kinds, sees)
  prompts = [np.asarray(encode(source[i].prompt), np.int32) for i in range(max(size.batches))]
  rows = []
  for batch in size.batches:
    canvas = canvas_of(prompts[:batch], training.facts.length, 8, mask_id)
    rows += _measured(methods, training.model, params, canvas, 8, mask_id, size.rounds)
  return rows


def _measured(
  methods: dict[str, tuple[Method, MaskRule]],
  model: Model,
  params: Params,
  canvas: Canvas,
  block: int,
  mask_id: int,
  rounds: int,
) -> list[Row]:
  calls = {}
  for name, (method, sees) in methods.items():
    sampler = method.sampler(model, sees, block, mask_id)
    start = canvas
    if isinstance(sees, masks.Causal):  # the rows' blocks start with the answer
      start = canvas.replace(start_B=canvas.open_BxL.argmax(-1).astype(np.int32))
    program = jax.jit(loop.run, static_argnums=0).lower(sampler, params, start).compile()
    calls[name] = functools.partial(program, params, start)
    jax.block_until_ready(calls[name]())
  seconds, done = interleaved(calls, rounds)
  base, new = next(iter(calls)), int(canvas.open_BxL.sum())
  return [
    {
      "speed-up": ratio(seconds[base], seconds[name]),
      "batch": len(canvas.tokens_BxL),
      "method": name,
      "tokens/s": rate(new, seconds[name]),
      "forwards": float(done[name].forwards_Bx3.sum(-1).mean()),
      "tokens/forward": new / float(done[name].forwards_Bx3.sum()),
      "queries/token": float(done[name].queries_B.sum()) / new,
    }
    for name in calls
  ]


def canvas_of(prompts: list[np.ndarray], slots: int, block: int, mask_id: int) -> Canvas:
  rows = [np.concatenate([ids, np.full(slots - len(ids), mask_id)]) for ids in prompts]
  return make_canvas(
    rows,
    [np.arange(slots) >= len(ids) for ids in prompts],
    list(range(len(prompts))),
    slots=slots,
    block=block,
    align="canvas",
    mask_id=mask_id,
    seed=0,
  )
