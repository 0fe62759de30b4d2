"""Grouped-query attention over the window's own keys and, with a cache, over the cached ones."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dlm.models.layers import Einsum, RMSNorm, rotate
from dlm.models.presets import ModelConfig
from dlm.types import Array


class Keys(NamedTuple):
  k_BxSxKxH: Array
  v_BxSxKxH: Array
  bias_BxWxS: Array  # float32 on the scores: 0 where the query sees the key, else -inf


@struct.dataclass
class Shared:
  """What all layers have in common, computed once outside the scan."""

  rotary: tuple[Array, Array]  # cosines and sines of the window's slots
  bias_BxWxW: Array  # of the window's own keys, see Keys
  bias_BxWxS: Array | None  # of the cached keys; None without a cache
  filled_BxS: Array | None
  time_BxWxC: Array | None  # embedded noise level; [1, 1, C] where it is the same everywhere


def of_layer(stored: tuple[Array, Array] | None, layer: Array) -> tuple[Array, Array] | None:
  """One layer's cached keys and values, of those of all."""
  if stored is None:
    return None
  return tuple(jax.lax.dynamic_index_in_dim(part, layer, keepdims=False) for part in stored)


def attend(q_BxWxNxH: Array, parts: Sequence[Keys]) -> Array:
  """One softmax over the keys of all parts; 0 for a query that sees no key.

  The parts meet in the scores, so neither cache nor window is copied, and a key head serves its
  group of query heads without being repeated. Softmax in float32.
  """
  batch, window, heads, dim = q_BxWxNxH.shape
  kv_heads = parts[0].k_BxSxKxH.shape[2]
  grouped = (batch, kv_heads, heads // kv_heads, window, -1)
  # Plain batched matmuls over [B, K] with the group folded into the rows: on CPUs XLA runs them
  # three times as fast as a contraction that names the group.
  q = (q_BxWxNxH * dim**-0.5).swapaxes(1, 2).reshape(batch, kv_heads, -1, dim)

  def score(keys: Keys) -> Array:
    dots = jnp.matmul(q, keys.k_BxSxKxH.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    scores = dots.reshape(grouped) + keys.bias_BxWxS[:, None, None]
    return scores.reshape(dots.shape)

  scores = [score(keys) for keys in parts]
  top = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in scores])
  # A query that sees nothing: exp(-inf - 0) = 0 everywhere instead of exp(-inf + inf) = NaN.
  top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))

  out, total = 0.0, 0.0
  for keys, part in zip(parts, scores, strict=True):
    weight, v = jnp.exp(part - top), keys.v_BxSxKxH.swapaxes(1, 2)
    total += weight.sum(-1, keepdims=True)
    out += jnp.matmul(weight.astype(v.dtype), v, preferred_element_type=jnp.float32)
  out /= jnp.where(total == 0, 1.0, total)  # last: [W, H] divisions instead of [W, S]
  out = out.reshape(batch, heads, window, dim).swapaxes(1, 2)
  return out.astype(q_BxWxNxH.dtype)


class Attention(nn.Module):
  config: ModelConfig
  out_gain: float

  @nn.compact
  def __call__(
    self, x_BxWxD: Array, cached: tuple[Array, Array] | None, shared: Shared
  ) -> tuple[Array, tuple[Array, Array]]:
    """Returns the output and the window's keys and values; `cached` holds one layer's."""
    cfg = self.config

    def project(name: str, heads: int, axis: str) -> Array:
      shape = (cfg.width, heads, cfg.head_dim)
      names = ("embed", axis, "head_dim")
      return Einsum("...D,DNH->...NH", shape, names, bias=cfg.qkv_bias, name=name)(x_BxWxD)

    q_BxWxNxH = project("query", cfg.heads, "heads")
    k_BxWxKxH = project("key", cfg.kv_heads, "kv_heads")
    v_BxWxKxH = project("value", cfg.kv_heads, "kv_heads")
    if cfg.qk_norm:
      q_BxWxNxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="query_norm")(q_BxWxNxH)
      k_BxWxKxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="key_norm")(k_BxWxKxH)
    q_BxWxNxH = rotate(q_BxWxNxH, shared.rotary)
    k_BxWxKxH = rotate(k_BxWxKxH, shared.rotary)

    parts = [Keys(k_BxWxKxH, v_BxWxKxH, shared.bias_BxWxW)]
    if cached is not None:
      # An empty slot may hold anything, and 0 * NaN is NaN. The guard rides in the scan's slicing.
      filled = shared.filled_BxS[:, :, None, None]
      k_BxSxKxH, v_BxSxKxH = (jnp.where(filled, store, 0) for store in cached)
      parts.append(Keys(k_BxSxKxH, v_BxSxKxH, shared.bias_BxWxS))
    shape = (cfg.heads, cfg.head_dim, cfg.width)
    names = ("heads", "head_dim", "embed")
    out = Einsum("...NH,NHD->...D", shape, names, gain=self.out_gain, name="out")
    return out(attend(q_BxWxNxH, parts)), (k_BxWxKxH, v_BxWxKxH)
