"""Experts on eight devices: rows, kernels and tokens are elsewhere, the numbers are the same."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import build, masks, parallel
from dlm.data import ByteTokenizer
from dlm.generate import Generator, Request
from dlm.models import ModelConfig, MoeConfig, bind
from dlm.models.moe.layer import Moe
from dlm.sampling.caching import ExactBlock
from dlm.sampling.clock import BlockMaskRatio
from dlm.sampling.policies import Threshold
from dlm.sampling.sampler import Sampler
from dlm.train import Step
from dlm.types import Batch
from tests.dlm.models.small import jitter

B, W, D = 8, 8, 16
PAIRS = MoeConfig(experts=8, per_token=2, mlp=4, z_loss=0.1, balance_loss=0.1)
BEST = MoeConfig(experts=8, per_token=2, mlp=4, choice="expert", renormalise=True, z_loss=0.1)
BY_NOISE = dataclasses.replace(BEST, schedule="linear_reverse", per_token_range=(2, 6), pool=4)
KINDS = {
  "expert choice": BEST,
  "by noise": BY_NOISE,
  "dropless": dataclasses.replace(PAIRS, score="sigmoid", bias=True, renormalise=True),
  "capacity": dataclasses.replace(PAIRS, capacity_factor=1.0, z_loss=0, balance_loss=0),
}
TWO_BY_FOUR, THREE_WAYS = {"data": 2, "expert": 4}, {"fsdp": 2, "tensor": 2, "expert": 2}
CASES = [
  ("expert choice", {"expert": 8}),
  ("by noise", TWO_BY_FOUR),
  ("by noise", THREE_WAYS),
  ("by noise", {"data": 2, "fsdp": 4}),
  ("dropless", TWO_BY_FOUR),
  ("dropless", THREE_WAYS),
  ("capacity", TWO_BY_FOUR),
]


def mesh_of(sizes):
  return parallel.make_mesh(**{"data": 1} | sizes)


def layer(moe: MoeConfig) -> Moe:
  sizes = {"vocab": 9, "width": D, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "mlp": 8}
  return Moe(ModelConfig(**sizes, moe=moe), 1.0)


def boxed(moe: MoeConfig):
  rows = jnp.zeros((1, 1, D)), jnp.ones((1, 1), bool), jnp.zeros((1, 1))
  return layer(moe).init(jax.random.key(0), *rows)["params"]


@functools.cache
def drawn(moe: MoeConfig):
  return jax.tree.map(lambda x: 3 * x, nn.unbox(jax.jit(lambda: boxed(moe))()))


def rows():
  """Rows of different lengths and noise levels."""
  rng = np.random.default_rng(0)
  live_BxW = np.arange(W)[None] < rng.integers(4, W + 1, B)[:, None]
  level_BxW = np.broadcast_to(rng.permutation(np.linspace(0, 1, B))[:, None], (B, W))
  return {
    "x": rng.normal(size=(B, W, D)).astype(np.float32),
    "live": live_BxW,
    "level": level_BxW.astype(np.float32),
  }


def outputs(moe, params, rows):
  """Output, facts, and gradients to parameters and input of a loss over output and facts."""

  def total(params, x):
    y, facts = layer(moe).apply({"params": params}, x, rows["live"], rows["level"])
    return (y**2).sum() + facts["router_loss_Y"], (y, facts)

  grads, (y, facts) = jax.grad(total, argnums=(0, 1), has_aux=True)(params, rows["x"])
  return {"y": y, "facts": facts, "params": grads[0], "x": grads[1]}


@functools.cache
def alone(kind: str, parts: int):
  """On one device; capacity counts a device's rows, so of as many parts, each by itself."""
  moe, whole = KINDS[kind], rows()
  compute = jax.jit(functools.partial(outputs, moe))
  if not moe.capacity_factor:
    return compute(drawn(moe), whole)
  each = [
    compute(drawn(moe), {name: np.split(x, parts)[part] for name, x in whole.items()})
    for part in range(parts)
  ]
  facts = [one.pop("facts") for one in each]
  joined = {name: jnp.concatenate([one[name] for one in each]) for name in ("y", "x")}
  joined["params"] = jax.tree.map(lambda *parts: sum(parts), *[one["params"] for one in each])
  experts_YxBxWxK = jnp.concatenate([one["experts_YxBxWxK"] for one in facts])
  load_YxE = sum(one["load_YxE"] for one in facts)
  return joined | {"facts": {"experts_YxBxWxK": experts_YxBxWxK, "load_YxE": load_YxE}}


def lowered(kind: str, dtype=jnp.float32, **sizes: int):
  """`outputs` as training runs it, and its arguments on their devices."""
  mesh, moe, whole = mesh_of(sizes), KINDS[kind], rows()
  whole["x"] = jnp.asarray(whole["x"], dtype)
  shardings = parallel.shard_params(jax.eval_shape(functools.partial(boxed, moe)), mesh)
  run = parallel.over_batch(
    functools.partial(outputs, moe),
    mesh,
    batched_in=(False, True),
    batched_out={"y": True, "x": True, "facts": False, "params": False},
  )
  arguments = (
    jax.device_put(drawn(moe), shardings),
    jax.device_put(whole, parallel.batch_sharding(mesh)),
  )
  return jax.jit(run).lower(*arguments), arguments


@functools.cache
def compiled(kind: str, **sizes: int):
  made, arguments = lowered(kind, **sizes)
  return made.compile(), arguments


def close(path, got, want):
  if jnp.issubdtype(want.dtype, jnp.integer):
    np.testing.assert_array_equal(got, want, err_msg=str(path))
  else:
    size = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * size, err_msg=str(path))


@pytest.mark.parametrize(("kind", "sizes"), CASES, ids=str)
def test_outputs_gradients_and_facts_are_those_of_one_device(kind, sizes):
  run, arguments = compiled(kind, **sizes)
  got, want = run(*arguments), alone(kind, parallel.batch_shards(mesh_of(sizes)))
  got["facts"] = {name: got["facts"][name] for name in want["facts"]}
  jax.tree_util.tree_map_with_path(close, got, want)
  assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(want["params"]["gate"]))
  load_E = np.asarray(got["facts"]["load_YxE"])
  if KINDS[kind].choice == "expert":
    assert load_E.max() == load_E.mean() > 0
  else:
    assert load_E.max() > load_E.mean()
  if kind == "dropless":  # a device that has more than an even share computes in several turns
    half_P = np.asarray(got["facts"]["experts_YxBxWxK"])[: B // 2].ravel()
    pairs_X = np.bincount(half_P // (8 // sizes["expert"]), minlength=sizes["expert"])
    assert pairs_X.max() > pairs_X.mean()


def gathers(kind: str, sizes) -> list[str]:
  lines = compiled(kind, **sizes)[0].as_text().splitlines()
  return [line for line in lines if " all-gather(" in line]


def test_tokens_travel_and_kernels_stay():
  text = compiled("by noise", **TWO_BY_FOUR)[0].as_text()
  assert len(re.findall(r" all-to-all\(", text)) >= 5  # there and back, forward and backward
  assert not gathers("by noise", TWO_BY_FOUR)
  for kind, sizes in (
    ("by noise", THREE_WAYS),
    ("dropless", TWO_BY_FOUR),
    ("dropless", THREE_WAYS),
  ):
    assert gathers(kind, sizes), "of kernels over fsdp, or of tokens"
    for line in gathers(kind, sizes):
      shapes = line.split(" all-gather(")[0]
      assert not re.search(r"\[8,\d+,\d+\]", shapes), f"a kernel of all experts: {line}"
      assert "top_k" not in line, f"a device routes the rows it has: {line}"


@pytest.mark.parametrize("kind", ["dropless", "capacity"])
def test_gradients_of_answers_travel_in_the_tokens_type_and_to_experts_alone(kind):
  text = lowered(kind, jnp.bfloat16, **THREE_WAYS)[0].as_text()

  def moved(op: str) -> list[str]:
    """Types of the tokens or answers that it carries."""
    made = re.findall(rf"stablehlo\.{op}.*?-> tensor<([^>]*)>", text, re.DOTALL)
    return sorted(each.split("x")[-1] for each in made if re.fullmatch(rf"\d+x{D}x[a-z]+\d+", each))

  if kind == "dropless":  # slots are exchanged by all-to-alls
    assert moved("all_gather") == ["bf16", "bf16"]  # tokens, and gradients of answers
    assert moved("reduce_scatter") == ["bf16", "f32"]  # gradients of tokens, and answers
  assert moved("all_reduce") == ["f32"]  # answers over the parts of the width


def test_no_array_has_a_row_for_every_pair_of_an_exchange():
  text, pairs = compiled("dropless", **TWO_BY_FOUR)[0].as_text(), B * W // 2 * PAIRS.per_token
  assert f"f32[{pairs // 4},{D}]" in text  # an even share, forward and backward
  assert f"f32[{pairs},{D}]" not in text and f"f32[{pairs},{PAIRS.mlp}]" not in text


CONFIG = {
  "seed": 0,
  "steps": 2,
  "batch": 16,
  "microbatches": 2,
  "model": {
    **{"width": 16, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 16},
    "moe": {
      **{"experts": 8, "mlp": 8, "per_token": 2, "choice": "expert", "renormalise": True},
      **{"shared": 8, "z_loss": 0.01, "schedule": "linear_reverse", "per_token_range": (1, 3)},
    },
  },
  "objective": {"name": "ec_dlm"},
  "data": {"sources": (("lists", 1.0, (("mode", "pad"),)),), "length": 32},
  "optimizer": {"lr": 1e-2},
  "checkpoint": {"keep_best": 0},
}


def updates(training: build.Training):
  """The numbers of two updates, and the parameters after them."""
  step = Step(training)
  state, told = step.init(), []
  for index in range(2):
    rows = jax.device_put(Batch(*training.rows[index]), parallel.batch_sharding(training.mesh))
    state, loss, numbers = step.update(state, rows)
    told.append(jax.device_get((loss, numbers)))
  return told, state.params


def test_training_on_an_expert_mesh_is_training_on_one_device():
  split = build.everything(CONFIG | {"mesh": TWO_BY_FOUR})
  one = parallel.make_mesh(1, devices=jax.devices()[:1])
  got, params = updates(split)
  want, _ = updates(dataclasses.replace(split, mesh=one))
  close_enough = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)
  jax.tree.map(close_enough, got, want)
  kernel = params["layers"]["moe"]["gate"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (2, 2, 16, 8)


@pytest.mark.parametrize("moe", [dataclasses.replace(BY_NOISE, per_token_range=(2, 4)), PAIRS])
def test_an_expert_mesh_writes_what_one_device_does(moe):
  """Blocks with a cache: of experts that choose, each block is a pool."""
  tokenizer, expert_choice = ByteTokenizer(), moe.choice == "expert"
  sizes = {"vocab": 260, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4}
  model = bind(ModelConfig(**sizes, mlp=8, moe=moe))
  params = jitter(jax.jit(model.init)(jax.random.key(0)))
  params |= {"final_norm": {"scale": 3 * params["final_norm"]["scale"]}}
  sampler = Sampler(
    model, Threshold(0.4), ExactBlock(), masks.BlockCausal(4), block=4, max_forwards=32,
    mask_id=tokenizer.mask_id, eos_ids=(tokenizer.eos_id,), temperature=1.0,
    clock=BlockMaskRatio(4) if expert_choice else None,
  )  # fmt: skip
  texts = ["0", "hello", "a[[3]]b[[2]]", "0123456789ab", "xy", "[[2]]z", "q", "[[1]]ab"]
  requests = [
    Request.from_text(id, text, tokenizer, slots=16, infill=True) for id, text in enumerate(texts)
  ]

  def written(mesh, params):
    done = Generator(sampler, tokenizer, mesh, batch=8)(params, requests, seed=3)
    logprobs = [np.array(each.logprobs, np.float32) for each in done]
    return [dataclasses.replace(each, seconds=0.0, logprobs=[]) for each in done], logprobs

  want, sure = written(parallel.make_mesh(1, devices=jax.devices()[:1]), params)
  assert len({sum(each.forwards.values()) for each in want}) > 2, "rows end at different times"
  mesh = mesh_of(TWO_BY_FOUR)
  split = jax.device_put(params, parallel.shard_params(model.abstract(), mesh))
  got, also_sure = written(mesh, split)
  assert got == want
  for ours, theirs in zip(also_sure, sure, strict=True):  # sums over another number of devices
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
