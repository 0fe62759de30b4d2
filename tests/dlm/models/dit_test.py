"""DiT layers against a plain numpy network; the published model is in tests/conformance."""

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from tests.dlm.models.small import (
  canvas_logits,
  dense_logits,
  init,
  jitter,
  random_tokens,
  slots_like,
  variant,
)

MODEL = variant(dit=6, kv_heads=4, tied=False, norm_eps=1e-5)


def silu(x):
  return x / (1 + np.exp(-x))


def reference_logits(config, params, tokens_L, seen_LxL):
  """One row in float64, one loop per layer and head."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

  def linear(x, at, eqn):
    return np.einsum(eqn, x, at["kernel"]) + at["bias"]

  def norm(x, scale):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

  def turn(x_LxH):
    half = config.head_dim // 2
    angle = np.arange(len(x_LxH))[:, None] * config.rope_base ** (-np.arange(half) / half)
    z = (x_LxH[:, :half] + 1j * x_LxH[:, half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)

  c = np.concatenate([np.ones(128), np.zeros(128)])  # cosines and sines of noise level 0
  for name in ("inner", "outer"):
    c = silu(linear(c, p["time"][name], "c,ce->e"))
  x = p["embed"][tokens_L]
  for y in range(config.layers):
    layer = jax.tree.map(lambda leaf, y=y: leaf[y], p["layers"])
    att, mlp = layer["attention"], layer["mlp"]
    shift, scale, gate, shift2, scale2, gate2 = linear(
      c, layer["modulation"]["linear"], "c,cmd->md"
    )
    h, out = norm(x, layer["attention_norm"]["scale"]) * (1 + scale) + shift, 0
    for n in range(config.heads):
      q, k, v = (h @ att[name]["kernel"][:, n] for name in ("query", "key", "value"))
      weight = np.exp(turn(q) @ turn(k).T / np.sqrt(config.head_dim)) * seen_LxL
      out = out + weight / weight.sum(-1, keepdims=True) @ v @ att["out"]["kernel"][n]
    x = x + gate * out
    h = norm(x, layer["mlp_norm"]["scale"]) * (1 + scale2) + shift2
    h = linear(h, mlp["up"], "ld,df->lf")
    h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    x = x + gate2 * linear(h, mlp["down"], "lf,fd->ld")
  head = p["head"]
  shift, scale = linear(c, head["modulation"]["linear"], "c,cmd->md")
  return (norm(x, head["norm"]["scale"]) * (1 + scale) + shift) @ p["unembed"].T + head["bias"]


def test_equals_a_plain_numpy_network():
  params, tokens = jitter(init(MODEL)), random_tokens(1, 9)
  logits = canvas_logits(MODEL, params, tokens, masks.BlockCausal(3))
  block = np.arange(9) // 3
  want = reference_logits(MODEL.config, params, np.asarray(tokens[0]), block[:, None] >= block)
  np.testing.assert_allclose(logits[0], want, atol=2e-5, rtol=2e-5)


def test_layers_begin_as_the_identity():
  """Gates are zero: a token's logits depend on itself alone."""
  params = init(MODEL)
  a, b = (
    canvas_logits(MODEL, params, random_tokens(1, 5, seed).at[0, 2].set(7)) for seed in (0, 1)
  )
  np.testing.assert_array_equal(a[:, 2], b[:, 2])
  moved = jitter(params)
  a, b = (canvas_logits(MODEL, moved, random_tokens(1, 5, seed).at[0, 2].set(7)) for seed in (0, 1))
  assert np.abs(a - b)[:, 2].max() > 1e-3


def test_a_cached_block_is_the_block_itself():
  params, tokens, rule = jitter(init(MODEL)), random_tokens(2, 8), masks.BlockCausal(4)
  want = canvas_logits(MODEL, params, tokens, rule)
  slot = slots_like(tokens)

  @jax.jit
  def step(cache, tokens_BxW, slot_BxW):
    mask, write = rule(slot_BxW, 8), jnp.ones(slot_BxW.shape, bool)
    out = MODEL(params, tokens_BxW, slot_BxW=slot_BxW, mask=mask, cache=cache, write_BxW=write)
    return dense_logits(out.head), out.cache

  first, cache = step(MODEL.empty_cache(2, 8), tokens[:, :4], slot[:, :4])
  second, _ = step(cache, tokens[:, 4:], slot[:, 4:])
  np.testing.assert_allclose(jnp.concatenate([first, second], 1), want, atol=1e-5)


def test_bias_of_the_head_is_in_the_logits_and_gets_a_gradient():
  params, tokens = init(MODEL), random_tokens(1, 4)
  raised = params | {"head": params["head"] | {"bias": jnp.arange(23.0)}}
  plain, higher = (canvas_logits(MODEL, p, tokens) for p in (params, raised))
  np.testing.assert_allclose(
    higher - plain, np.broadcast_to(np.arange(23.0), (1, 4, 23)), atol=1e-5
  )
  gradient = jax.jit(jax.grad(lambda p: canvas_logits(MODEL, p, tokens)[0, :, 3].sum()))(params)
  np.testing.assert_allclose(gradient["head"]["bias"], 4.0 * (np.arange(23) == 3), atol=1e-6)
