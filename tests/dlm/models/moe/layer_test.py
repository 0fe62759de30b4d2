"""Tokens' choices against a slow twin, and layers of experts inside the model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import MoeConfig
from dlm.models.moe.token_choice import token_choice
from tests.dlm.models.small import (
  SMALL,
  canvas_logits,
  init,
  jitter,
  random_tokens,
  slots_like,
  variant,
)

PLAIN = MoeConfig(experts=8, per_token=3, mlp=6)
LLADA2 = MoeConfig(
  experts=8, per_token=3, mlp=6, shared=5, dense_layers=1, score="sigmoid", bias=True,
  renormalise=True, scale=2.5, groups=4, top_groups=2,
)  # fmt: skip
MIXED = variant(layers=3, moe=LLADA2)


def twin_choice(moe: MoeConfig, logits_E, bias_E):
  """One token in float64: experts, best first, and their weights."""
  if moe.score == "softmax":
    score = np.exp(logits_E - logits_E.max())
    score = score / score.sum()
  else:
    score = 1 / (1 + np.exp(-logits_E))
  biased = score + (bias_E if moe.bias else 0)
  size = moe.experts // moe.groups
  sums = [
    sum(sorted(biased[g * size : (g + 1) * size], reverse=True)[:2]) for g in range(moe.groups)
  ]
  best = sorted(range(moe.groups), key=lambda g: (-sums[g], g))[: moe.top_groups]
  allowed = [e for e in range(moe.experts) if e // size in best]
  chosen = sorted(allowed, key=lambda e: (-biased[e], e))[: moe.per_token]
  weight = (biased if moe.bias_in_weight else score)[chosen]
  if moe.renormalise:
    weight = weight / (weight.sum() + 1e-20)
  return chosen, moe.scale * weight


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"score": "sigmoid"},
    {"renormalise": True},
    {"scale": 2.5},
    {"bias": True},
    {"bias": True, "bias_in_weight": True},
    {"groups": 4, "top_groups": 2},
    {"groups": 2, "top_groups": 2},
    {"groups": 2, "top_groups": 1, "score": "sigmoid", "bias": True},
    {"score": "sigmoid", "bias": True, "renormalise": True, "scale": 2.5, "groups": 4,
     "top_groups": 2},
  ],
  ids=lambda changes: " ".join(changes) or "plain",
)  # fmt: skip
def test_token_choice_equals_its_slow_twin(changes):
  moe = dataclasses.replace(PLAIN, **changes)
  rng = np.random.default_rng(0)
  logits_TxE = rng.normal(size=(40, 8)).astype(np.float32)
  bias_E = rng.normal(scale=0.3, size=8).astype(np.float32)
  bias = jnp.asarray(bias_E) if moe.bias else None
  chosen, weight = jax.jit(functools.partial(token_choice, moe))(jnp.asarray(logits_TxE), bias)
  want = [twin_choice(moe, row, bias_E) for row in logits_TxE.astype(np.float64)]
  np.testing.assert_array_equal(chosen, [experts for experts, _ in want])
  np.testing.assert_allclose(weight, [weights for _, weights in want], rtol=1e-5)
  assert (chosen.dtype, weight.dtype) == (jnp.int32, jnp.float32)


def test_of_equal_scores_the_lowest_index_wins():
  """Among experts, and among groups."""
  level = jnp.zeros((1, 8))
  assert token_choice(PLAIN, level, None)[0].tolist() == [[0, 1, 2]]
  peaks = level.at[0, jnp.array([3, 6])].set(1.0)
  assert token_choice(PLAIN, peaks, None)[0].tolist() == [[3, 6, 0]]
  grouped = dataclasses.replace(PLAIN, groups=4, top_groups=2)
  assert token_choice(grouped, peaks, None)[0].tolist() == [[3, 6, 2]]
  assert token_choice(grouped, level.at[0, 6].set(1.0), None)[0].tolist() == [[6, 0, 1]]


def test_the_bias_decides_the_choice_and_learns_nothing():
  moe = dataclasses.replace(PLAIN, bias=True, bias_in_weight=True)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
  far = jnp.zeros(8).at[5].set(9.0)
  assert (token_choice(moe, logits, far)[0][:, 0] == 5).all()
  gradient = jax.grad(lambda z, b: token_choice(moe, z, b)[1].sum(), argnums=(0, 1))
  by_logits, by_bias = gradient(logits, far)
  assert np.abs(by_logits).max() > 1e-3
  np.testing.assert_array_equal(by_bias, np.zeros(8))


def test_parameters_are_stacked_in_two_groups_and_named_as_documented():
  tree = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(MIXED.init, jax.random.key(0)))
  assert tree["layers"]["moe"] == {
    "router": {"kernel": (2, 16, 8), "bias": (2, 8)},
    "gate": {"kernel": (2, 8, 16, 6)},
    "up": {"kernel": (2, 8, 16, 6)},
    "down": {"kernel": (2, 8, 6, 16)},
    "shared": {
      "gate": {"kernel": (2, 16, 5)},
      "up": {"kernel": (2, 16, 5)},
      "down": {"kernel": (2, 5, 16)},
    },
  }
  assert tree["dense_layers"]["mlp"]["gate"] == {"kernel": (1, 16, 24)}
  assert set(tree["layers"]) ^ set(tree["dense_layers"]) == {"moe", "mlp"}
  plain = jax.eval_shape(variant(moe=PLAIN).init, jax.random.key(0))
  assert set(plain) == {"embed", "final_norm", "layers"}
  assert set(plain["layers"]["moe"]) == {"router", "gate", "up", "down"}
  assert set(plain["layers"]["moe"]["router"]) == {"kernel"}


def test_experts_start_as_large_as_a_plain_mlp():
  """Fan-in of one expert, not of all; residual outputs smaller by sqrt(2 * layers)."""
  model = variant(width=64, layers=8, moe=MoeConfig(experts=4, per_token=2, mlp=256))
  moe = init(model)["layers"]["moe"]
  assert np.std(moe["gate"]["kernel"]) == pytest.approx(1 / 8, rel=0.05)
  assert np.std(moe["down"]["kernel"]) == pytest.approx(1 / 16 / 4, rel=0.05)
  assert (moe["up"]["kernel"][0] != moe["up"]["kernel"][1]).all()
  assert (moe["up"]["kernel"][:, 0] != moe["up"]["kernel"][:, 1]).all()


def as_one_dense_mlp(params, layer):
  """A layer whose experts are all chosen with weight 1 / E, and its shared expert, as one MLP."""
  moe = jax.tree.map(lambda leaf: leaf[layer], params["layers"]["moe"])
  join = {"gate": 1, "up": 1, "down": 0}
  mlp = {}
  for name, axis in join.items():
    kernels = list(moe[name]["kernel"])
    if name == "down":
      kernels = [kernel / len(kernels) for kernel in kernels]
    mlp[name] = {"kernel": jnp.concatenate([*kernels, moe["shared"][name]["kernel"]], axis)}
  return mlp


def test_experts_that_all_answer_equal_one_wide_mlp():
  """Routed sum, shared expert and the order of the two stacks, against the plain transformer."""
  moe = MoeConfig(experts=2, per_token=2, mlp=8, shared=8, dense_layers=1)
  model = variant(layers=3, moe=moe)
  params = jitter(init(model))
  params["layers"]["moe"]["router"] = jax.tree.map(
    jnp.zeros_like, params["layers"]["moe"]["router"]
  )
  plain = {name: params[name] for name in ("embed", "final_norm")}
  wide = [as_one_dense_mlp(params, layer) for layer in range(2)]
  first = params["dense_layers"]
  rest = {name: leaf for name, leaf in params["layers"].items() if name != "moe"}
  rest["mlp"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *wide)
  plain["layers"] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, rest)
  tokens = random_tokens(2, 8)
  want = canvas_logits(variant(layers=3), plain, tokens)
  np.testing.assert_allclose(canvas_logits(model, params, tokens), want, atol=1e-5, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def facts(model, params, tokens_BxL):
  slot_BxL = slots_like(tokens_BxL)
  mask = masks.Full()(slot_BxL, tokens_BxL.shape[1])
  ask_Bx1 = jnp.zeros((len(tokens_BxL), 1), jnp.int32)
  return model(params, tokens_BxL, slot_BxW=slot_BxL, mask=mask, ask_BxA=ask_Bx1).aux


def test_aux_tells_what_the_router_did_in_every_layer_that_has_one():
  params, tokens = jitter(init(MIXED)), random_tokens(2, 7)
  aux = facts(MIXED, params, tokens)
  assert {name: (fact.shape, fact.dtype.name) for name, fact in aux.items()} == {
    "router_logits_YxBxWxE": ((2, 2, 7, 8), "float32"),
    "experts_YxBxWxK": ((2, 2, 7, 3), "int32"),
    "weights_YxBxWxK": ((2, 2, 7, 3), "float32"),
    "load_YxE": ((2, 8), "int32"),
    **{f"{name}_Y": ((2,), "float32") for name in ("per_token", "unchosen", "dropped")},
    **{f"{name}_Y": ((2,), "float32") for name in ("z_loss", "balance_loss", "router_loss")},
  }
  bias_YxE = params["layers"]["moe"]["router"]["bias"]
  for y in range(2):
    logits_TxE = aux["router_logits_YxBxWxE"][y].reshape(-1, 8)
    chosen, weight = token_choice(LLADA2, logits_TxE, bias_YxE[y])
    np.testing.assert_array_equal(aux["experts_YxBxWxK"][y].reshape(-1, 3), chosen)
    np.testing.assert_allclose(aux["weights_YxBxWxK"][y].reshape(-1, 3), weight, rtol=1e-6)
  assert facts(SMALL, init(SMALL), tokens) == {}


def test_routing_is_float32_whatever_the_activations_are():
  exact, rounded = (variant(layers=3, moe=LLADA2, dtype=d) for d in ("float32", "bfloat16"))
  params, tokens = jitter(init(exact)), random_tokens(2, 7)
  assert facts(rounded, params, tokens)["router_logits_YxBxWxE"].dtype == jnp.float32
  near, want = canvas_logits(rounded, params, tokens), canvas_logits(exact, params, tokens)
  assert 0 < np.median(np.abs(near - want)) < 0.05


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_reach_every_parameter_but_the_bias(remat):
  model = variant(layers=3, moe=LLADA2, remat=remat)
  params, tokens = jitter(init(model)), random_tokens(2, 8)
  grads = jax.jit(jax.grad(lambda p: (canvas_logits(model, p, tokens) ** 2).sum()))(params)
  bias = grads["layers"]["moe"]["router"].pop("bias")
  np.testing.assert_array_equal(bias, jnp.zeros_like(bias))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
