"""Grouped-query attention in plain matmuls with an additive bias. Any XLA backend."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernels_pallas.block_attention.spec import (
  Heads,
  Keys,
  Mask,
  Part,
  own_layer,
  visible,
  without_dead,
)

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
  bias_BxWxS: tuple[Array, ...]  # float32 on the scores: 0 where the query sees the key, else -inf
  live_BxS: tuple[Array | None, ...]

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
    """See `kernels_pallas.block_attention.block_attention`.

    The parts meet in the scores, so neither cache nor window is copied, and a key head serves its
    group of query heads without being repeated. Softmax in float32.
    """
    # The guard against dead keys rides in the slicing of the layer.
    parts = [
      without_dead(own_layer(part), live) for part, live in zip(parts, self.live_BxS, strict=True)
    ]
    batch, window, heads, dim = q_BxWxNxH.shape
    kv_heads = parts[0].k.shape[2]
    grouped = (batch, kv_heads, heads // kv_heads, window, -1)
    # Plain batched matmuls over [B, K] with the group folded into the rows: on CPUs XLA runs them
    # three times as fast as a contraction that names the group.
    q = (q_BxWxNxH * dim**-0.5).swapaxes(1, 2).reshape(batch, kv_heads, -1, dim)

    def score(part: Part, bias_BxWxS: Array) -> Array:
      dots = jnp.matmul(q, part.k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
      scores = dots.reshape(grouped) + bias_BxWxS[:, None, None]
      return scores.reshape(dots.shape)

    scores = [score(part, bias) for part, bias in zip(parts, self.bias_BxWxS, strict=True)]
    top = functools.reduce(jnp.maximum, [part.max(-1, keepdims=True) for part in scores])
    # A query that sees nothing: exp(-inf - 0) = 0 everywhere instead of exp(-inf + inf) = NaN.
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))

    out, total = 0.0, 0.0
    for part, part_scores in zip(parts, scores, strict=True):
      weight, v = jnp.exp(part_scores - top), part.v.swapaxes(1, 2)
      total += weight.sum(-1, keepdims=True)
      out += jnp.matmul(weight.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out /= jnp.where(total == 0, 1.0, total)  # last: [W, H] divisions instead of [W, S]
    out = out.reshape(batch, heads, window, dim).swapaxes(1, 2)
    return out.astype(q_BxWxNxH.dtype)


def prepare(mask: Mask, keys: Sequence[Keys], heads: Heads) -> Sight:
  """See `kernels_pallas.block_attention.prepare`."""
  return Sight(
    tuple(jnp.where(visible(mask, part), jnp.float32(0), -jnp.inf) for part in keys),
    tuple(part.live_BxS for part in keys),
  )
