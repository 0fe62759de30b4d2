"""Grouped-query attention over the window's own keys and, with a cache, over the cached ones."""

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
  sees_BxWxS: Array  # bool


@struct.dataclass
class Shared:
  """What all layers have in common, computed once outside the scan."""

  rotary: tuple[Array, Array]  # cosines and sines of the window's slots
  sees_BxWxW: Array  # the window's own keys
  sees_BxWxS: Array | None  # cached keys; None without a cache
  filled_BxS: Array | None
  time_BxWxC: Array | None  # embedded noise level


def attend(q_BxWxNxH: Array, parts: Sequence[Keys]) -> Array:
  """One softmax over the keys of all parts; 0 for a query that sees no key.

  The parts meet in the scores, so neither cache nor window is copied, and a key head serves its
  group of query heads without being repeated. Softmax in float32.
  """
  batch, window, heads, dim = q_BxWxNxH.shape
  kv_heads = parts[0].k_BxSxKxH.shape[2]
  q = (q_BxWxNxH * dim**-0.5).reshape(batch, window, kv_heads, heads // kv_heads, dim)

  def score(keys: Keys) -> Array:
    dots = jnp.einsum("BWKGH,BSKH->BKGWS", q, keys.k_BxSxKxH, preferred_element_type=jnp.float32)
    return jnp.where(keys.sees_BxWxS[:, None, None], dots, -jnp.inf)

  scores = [score(keys) for keys in parts]
  top = scores[0].max(-1, keepdims=True)
  for part in scores[1:]:
    top = jnp.maximum(top, part.max(-1, keepdims=True))
  # A query that sees nothing: exp(-inf - 0) = 0 everywhere instead of exp(-inf + inf) = NaN.
  top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))

  out, total = 0.0, 0.0
  for keys, part in zip(parts, scores, strict=True):
    weight = jnp.exp(part - top)
    total += jnp.einsum("BKGWS->BWKG", weight)[..., None]
    out += jnp.einsum(
      "BKGWS,BSKH->BWKGH",
      weight.astype(keys.v_BxSxKxH.dtype),
      keys.v_BxSxKxH,
      preferred_element_type=jnp.float32,
    )
  # Dividing last touches [W, H] numbers instead of [W, S].
  out /= jnp.where(total == 0, 1.0, total)
  return out.reshape(q_BxWxNxH.shape).astype(q_BxWxNxH.dtype)


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
      return Einsum("BWD,DNH->BWNH", shape, names, bias=cfg.qkv_bias, name=name)(x_BxWxD)

    q_BxWxNxH = project("query", cfg.heads, "heads")
    k_BxWxKxH = project("key", cfg.kv_heads, "kv_heads")
    v_BxWxKxH = project("value", cfg.kv_heads, "kv_heads")
    if cfg.qk_norm:
      q_BxWxNxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="query_norm")(q_BxWxNxH)
      k_BxWxKxH = RMSNorm(cfg.norm_eps, ("head_dim",), name="key_norm")(k_BxWxKxH)
    q_BxWxNxH = rotate(q_BxWxNxH, shared.rotary)
    k_BxWxKxH = rotate(k_BxWxKxH, shared.rotary)

    parts = [Keys(k_BxWxKxH, v_BxWxKxH, shared.sees_BxWxW)]
    if cached is not None:
      # An empty slot may hold anything, and 0 * NaN is NaN. The guard rides in the scan's slicing.
      filled = shared.filled_BxS[:, :, None, None]
      k_BxSxKxH, v_BxSxKxH = (jnp.where(filled, store, 0) for store in cached)
      parts.append(Keys(k_BxSxKxH, v_BxSxKxH, shared.sees_BxWxS))
    shape = (cfg.heads, cfg.head_dim, cfg.width)
    names = ("heads", "head_dim", "embed")
    out = Einsum("BWNH,NHD->BWD", shape, names, gain=self.out_gain, name="out")
    return out(attend(q_BxWxNxH, parts)), (k_BxWxKxH, v_BxWxKxH)
