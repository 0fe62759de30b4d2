"""A tiny model and its logits, for the tests beside this file."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm import masks
from dlm.models import Model, ModelConfig, bind

SMALL = bind(ModelConfig(vocab=23, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24))


def variant(**changes) -> Model:
  return bind(dataclasses.replace(SMALL.config, **changes))


@functools.cache
def init(model: Model):
  return jax.jit(model.init)(jax.random.key(0))


def random_tokens(batch: int, length: int, seed: int = 0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 23, (batch, length)), jnp.int32)


def slots_like(tokens_BxL):
  return jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1], dtype=jnp.int32), tokens_BxL.shape)


def dense_logits(head):
  wide = head.hidden_BxAxD.astype(jnp.float32)
  return jnp.einsum("BAD,VD->BAV", wide, head.unembed_VxD.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("model", "rule"))
def canvas_logits(model, params, tokens_BxL, rule=masks.Full(), **arguments):  # noqa: B008
  """Logits [B, L, V] of a whole canvas, without a cache."""
  slot_BxL = slots_like(tokens_BxL)
  mask = rule(slot_BxL, tokens_BxL.shape[1])
  return dense_logits(model(params, tokens_BxL, slot_BxW=slot_BxL, mask=mask, **arguments).head)


@jax.jit
def jitter(params):
  """No parameter at its special initial value (ones, zeros)."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(tree, [leaf + add for leaf, add in zip(leaves, noise, strict=True)])
