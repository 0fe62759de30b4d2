"""The transformer against its promises: shapes, options, one trace for all layers, one compile."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm import masks
from dlm.models import ModelConfig, MoeConfig, RopeScaling, bind
from dlm.models.layers import rotary, rotate
from dlm.models.rope import frequencies
from tests.dlm.models.small import (
  SMALL,
  canvas_logits,
  init,
  jitter,
  random_tokens,
  slots_like,
  variant,
)


def shapes(model):
  return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(model.init, jax.random.key(0)))


def test_parameters_are_stacked_and_named_as_documented():
  model = variant(qk_norm=True, qkv_bias=True, tied=False, time_conditioned=True)
  assert shapes(model) == {
    "embed": (23, 16),
    "unembed": (23, 16),
    "final_norm": {"scale": (16,)},
    "time": {"inner": {"kernel": (128, 128)}, "outer": {"kernel": (128, 128)}},
    "layers": {
      "attention_norm": {"scale": (2, 16)},
      "mlp_norm": {"scale": (2, 16)},
      "modulation": {"kernel": (2, 128, 6, 16)},
      "attention": {
        "query": {"kernel": (2, 16, 4, 4), "bias": (2, 4, 4)},
        "key": {"kernel": (2, 16, 2, 4), "bias": (2, 2, 4)},
        "value": {"kernel": (2, 16, 2, 4), "bias": (2, 2, 4)},
        "query_norm": {"scale": (2, 4)},
        "key_norm": {"scale": (2, 4)},
        "out": {"kernel": (2, 4, 4, 16)},
      },
      "mlp": {
        "gate": {"kernel": (2, 16, 24)},
        "up": {"kernel": (2, 16, 24)},
        "down": {"kernel": (2, 24, 16)},
      },
    },
  }


def test_options_that_are_off_own_no_parameters():
  tree = shapes(SMALL)
  assert set(tree) == {"embed", "final_norm", "layers"}
  assert set(tree["layers"]) == {"attention", "attention_norm", "mlp", "mlp_norm"}
  assert set(tree["layers"]["attention"]) == {"query", "key", "value", "out"}
  assert set(tree["layers"]["attention"]["query"]) == {"kernel"}


def test_ids_outside_the_vocabulary_read_the_nearest_row():
  """A checkpoint without a mask token has its mask id one past the last row."""
  params = init(SMALL)
  outside = jnp.array([[3, 23, 4, 99, -1]], jnp.int32)
  clipped = jnp.array([[3, 22, 4, 22, 0]], jnp.int32)
  want = canvas_logits(SMALL, params, clipped)
  np.testing.assert_array_equal(canvas_logits(SMALL, params, outside), want)


def test_initial_scales():
  """Layers differ; fan-in everywhere; residual outputs smaller by sqrt(2 * layers)."""
  config = ModelConfig(vocab=64, width=64, layers=8, heads=4, kv_heads=4, head_dim=16, mlp=256)
  params = init(bind(config))
  mlp = params["layers"]["mlp"]
  assert np.std(params["embed"]) == pytest.approx(1 / 8, rel=0.05)
  assert np.std(mlp["gate"]["kernel"]) == pytest.approx(1 / 8, rel=0.05)
  assert np.std(mlp["down"]["kernel"]) == pytest.approx(1 / 16 / 4, rel=0.05)
  assert (mlp["gate"]["kernel"][0] != mlp["gate"]["kernel"][1]).all()


def reference_logits(config, params, tokens_L, seen_LxL):
  """The same network in numpy, float64, one row, one loop per layer and head."""
  scaling = config.rope_scaling or RopeScaling("linear", 1.0)
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

  def turn(x_LxH):
    half = config.head_dim // 2
    frequency = frequencies(config.head_dim, config.rope_base, scaling).astype(np.float64)
    angle = np.arange(len(x_LxH))[:, None] * frequency
    z = (x_LxH[:, :half] + 1j * x_LxH[:, half:]) * np.exp(1j * angle) * scaling.amplitude
    return np.concatenate([z.real, z.imag], -1)

  x = p["embed"][tokens_L]
  for y in range(config.layers):
    layer = jax.tree.map(lambda leaf, y=y: leaf[y], p["layers"])
    att, mlp = layer["attention"], layer["mlp"]
    h = norm(x, layer["attention_norm"]["scale"])
    for n in range(config.heads):
      kv = n // (config.heads // config.kv_heads)
      q = h @ att["query"]["kernel"][:, n] + att["query"]["bias"][n]
      k = h @ att["key"]["kernel"][:, kv] + att["key"]["bias"][kv]
      v = h @ att["value"]["kernel"][:, kv] + att["value"]["bias"][kv]
      q, k = norm(q, att["query_norm"]["scale"]), norm(k, att["key_norm"]["scale"])
      weight = np.exp(turn(q) @ turn(k).T / math.sqrt(config.head_dim)) * seen_LxL
      x = x + weight / weight.sum(-1, keepdims=True) @ v @ att["out"]["kernel"][n]
    x = x + att["out"].get("bias", 0)
    h = norm(x, layer["mlp_norm"]["scale"])
    gate, up = (h @ mlp[name]["kernel"] + mlp[name].get("bias", 0) for name in ("gate", "up"))
    x = x + gate / (1 + np.exp(-gate)) * up @ mlp["down"]["kernel"] + mlp["down"].get("bias", 0)
  return norm(x, p["final_norm"]["scale"]) @ p["unembed"].T


@pytest.mark.parametrize(
  "fields",
  [{}, {"out_bias": True, "mlp_bias": True, "rope_scaling": RopeScaling("yarn", 4.0, 16)}],
)
def test_equals_a_plain_numpy_network(fields):
  """RMSNorm, qk-norm, biases, half-split RoPE, grouped queries, SwiGLU: all at once."""
  model = variant(qk_norm=True, qkv_bias=True, tied=False, **fields)
  params = jitter(init(model))
  tokens = random_tokens(1, 9)
  logits = canvas_logits(model, params, tokens, masks.BlockCausal(3))
  block = np.arange(9) // 3
  want = reference_logits(model.config, params, np.asarray(tokens[0]), block[:, None] >= block)
  np.testing.assert_allclose(logits[0], want, atol=2e-5, rtol=2e-5)


def test_a_partial_rotation_leaves_the_tail_of_a_head_untouched():
  """And turns the leading channels as if they were the whole head."""
  x_BxWxNxH = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, 8)), jnp.float32)
  angles = rotary(slots_like(x_BxWxNxH[:, :, 0, 0]), 6, 100.0)
  turned = rotate(x_BxWxNxH, angles)
  np.testing.assert_array_equal(turned[..., 6:], x_BxWxNxH[..., 6:])
  np.testing.assert_array_equal(turned[..., :6], rotate(x_BxWxNxH[..., :6], angles))
  assert (np.abs(turned - x_BxWxNxH)[:, 1:, :, :6] > 0).all()


def test_the_model_rotates_as_many_channels_as_asked():
  """A query and a key that live in the tail alone cannot tell slots apart."""
  params, tokens = init(SMALL), random_tokens(1, 6)
  attention = params["layers"]["attention"]
  tail = jnp.array([0.0, 0.0, 1.0, 1.0])[None, None, None]
  blind = {
    name: {"kernel": attention[name]["kernel"] * tail} if name in ("query", "key") else leaf
    for name, leaf in attention.items()
  }
  blind = {**params, "layers": {**params["layers"], "attention": blind}}
  slot = slots_like(tokens)

  def spread(rotary_dim: int) -> float:
    model = variant(rotary_dim=rotary_dim)
    mask = masks.Full()(slot, 6)

    @jax.jit
    def hidden(slot):
      return model(blind, tokens, slot_BxW=slot, mask=mask).head.hidden_BxAxD

    return float(np.abs(hidden(slot) - hidden(slot * 3)).max())

  assert spread(2) == 0
  assert spread(0) > 1e-3


def test_only_distances_between_slots_matter():
  params, tokens = init(SMALL), random_tokens(2, 8)
  slot = slots_like(tokens)
  full = masks.Full()(slot, 8)

  @jax.jit
  def hidden(slot):
    return SMALL(params, tokens, slot_BxW=slot, mask=full).head.hidden_BxAxD

  near, far, spread = hidden(slot), hidden(slot + 1000), hidden(2 * slot)
  np.testing.assert_allclose(near, far, atol=1e-4)
  assert np.abs(near - spread).max() > 1e-2


def test_asked_rows_are_the_rows_of_the_whole():
  params, tokens = init(SMALL), random_tokens(2, 8)
  ask = jnp.array([[5, 0, 5], [7, 1, 2]], jnp.int32)
  whole = canvas_logits(SMALL, params, tokens)
  asked = canvas_logits(SMALL, params, tokens, ask_BxA=ask)
  np.testing.assert_allclose(asked, jnp.take_along_axis(whole, ask[:, :, None], 1), atol=1e-6)


def test_tied_head_is_the_embedding_and_carries_the_soft_cap():
  model = variant(soft_cap=30.0)
  params, tokens = init(model), random_tokens(1, 4)
  slot = slots_like(tokens)
  out = jax.jit(lambda p: model(p, tokens, slot_BxW=slot, mask=masks.Full()(slot, 4)))(params)
  np.testing.assert_array_equal(out.head.unembed_VxD, params["embed"])
  assert out.head.soft_cap == 30.0
  assert out.cache is None
  assert out.aux == {}


@functools.partial(jax.jit, static_argnums=0)
def gradient(model, params, tokens):
  return jax.grad(lambda p: (canvas_logits(model, p, tokens) ** 2).sum())(params)


def test_remat_changes_no_gradient():
  params, tokens = init(SMALL), random_tokens(2, 8)
  plain, again = (gradient(variant(remat=remat), params, tokens) for remat in (False, True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
  model = variant(dtype="bfloat16", qk_norm=True, qkv_bias=True)
  params, tokens = init(model), random_tokens(2, 8)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient(model, params, tokens))} == {
    jnp.dtype("float32")
  }
  slot = slots_like(tokens)
  head = jax.eval_shape(
    lambda p: model(p, tokens, slot_BxW=slot, mask=masks.Full()(slot, 8)).head, params
  )
  assert head.hidden_BxAxD.dtype == head.unembed_VxD.dtype == jnp.bfloat16
  assert model.empty_cache(2, 8).k_YxBxSxKxH.dtype == jnp.float32  # of bfloat16, on a CPU
  exact = canvas_logits(variant(qk_norm=True, qkv_bias=True), params, tokens)
  near = canvas_logits(model, params, tokens)
  assert 0 < np.abs(exact - near).max() < 0.15


def test_bfloat16_tells_distant_slots_apart():
  """Angles are made in float32, so neighbours far down the canvas still differ."""
  model = variant(dtype="bfloat16")
  params, tokens = init(model), random_tokens(1, 2)
  full = masks.Full()(slots_like(tokens), 2)

  @jax.jit
  def hidden(first, second):
    slot = jnp.stack([first, second]).astype(jnp.int32)[None]
    return model(params, tokens, slot_BxW=slot, mask=full).head.hidden_BxAxD.astype(jnp.float32)

  near, same = hidden(10_000, 10_003), hidden(10_000, 10_000)
  assert np.abs(near - same).max() > 0.02
  np.testing.assert_allclose(near, hidden(0, 3), atol=0.02)


def test_time_matters_only_once_its_weights_left_zero():
  model = variant(time_conditioned=True)
  params, tokens = init(model), random_tokens(2, 8)
  early, late = (jnp.full(tokens.shape, t, jnp.float32) for t in (0.1, 0.9))
  plain = {"embed": params["embed"], "final_norm": params["final_norm"]}
  plain["layers"] = {name: p for name, p in params["layers"].items() if name != "modulation"}
  at_init = [canvas_logits(model, params, tokens, time_BxW=t) for t in (early, late)]
  np.testing.assert_array_equal(*at_init)
  np.testing.assert_allclose(at_init[0], canvas_logits(SMALL, plain, tokens), atol=1e-6)

  trained = jitter(params)
  a, b = (canvas_logits(model, trained, tokens, time_BxW=t) for t in (early, late))
  assert np.abs(a - b).max() > 1e-2
  # Per token: under a causal mask a change at position 5 leaves 0..4 alone.
  mixed = early.at[:, 5].set(0.9)
  c, d = (canvas_logits(model, trained, tokens, masks.Causal(), time_BxW=t) for t in (early, mixed))
  np.testing.assert_array_equal(c[:, :5], d[:, :5])
  assert (np.abs(c - d).max(-1)[:, 5:] > 0).all()


def test_missing_arguments_are_refused():
  timed = variant(time_conditioned=True)
  tokens = random_tokens(1, 4)
  slot = slots_like(tokens)
  mask = masks.Full()(slot, 4)
  with pytest.raises(ValueError, match="needs time_BxW"):
    timed({}, tokens, slot_BxW=slot, mask=mask)
  with pytest.raises(ValueError, match="cache is None"):
    SMALL({}, tokens, slot_BxW=slot, mask=mask, write_BxW=jnp.ones((1, 4), bool))


def equations(jaxpr) -> int:
  """Equations of a jaxpr and of all that it holds."""
  inner = [
    getattr(value, "jaxpr", value)
    for eqn in jaxpr.eqns
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    if hasattr(getattr(value, "jaxpr", value), "eqns")
  ]
  return len(jaxpr.eqns) + sum(equations(each) for each in inner)


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("moe", [None, MoeConfig(experts=4, per_token=2, mlp=8, dense_layers=1)])
def test_depth_does_not_grow_the_program(with_cache, moe):
  tokens = random_tokens(1, 4)
  slot = slots_like(tokens)

  def size(layers: int) -> int:
    model = variant(layers=layers, moe=moe)

    def loss(params):
      cache, write = (model.empty_cache(1, 8), slot < 2) if with_cache else (None, None)
      mask = masks.Full()(slot, 8 if with_cache else 4)
      out = model(params, tokens, slot_BxW=slot, mask=mask, cache=cache, write_BxW=write)
      return out.head.hidden_BxAxD.sum()

    params = jax.eval_shape(model.init, jax.random.key(0))
    return equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

  assert size(2) == size(8) > 100


def test_equal_models_share_one_compile():
  @functools.partial(jax.jit, static_argnums=0)
  def run(model, params, tokens):
    return canvas_logits(model, params, tokens)

  params, tokens = init(SMALL), random_tokens(1, 4)
  for _ in range(2):
    run(variant(), params, tokens)
  assert run._cache_size() == 1
  run(variant(rope_base=5.0), params, tokens)
  assert run._cache_size() == 2
