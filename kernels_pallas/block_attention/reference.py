"""The definition: one float32 softmax over the keys of all parts, key heads repeated."""

import dataclasses
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
  seen_BxWxS: tuple[Array, ...]  # bool, per part
  live_BxS: tuple[Array | None, ...]

  def attend(self, q_BxWxNxH: Array, parts: Sequence[Part]) -> Array:
    """See `kernels_pallas.block_attention.block_attention`."""
    parts = [
      without_dead(own_layer(part), live) for part, live in zip(parts, self.live_BxS, strict=True)
    ]
    k_BxSxKxH = jnp.concatenate([part.k for part in parts], axis=1).astype(jnp.float32)
    v_BxSxKxH = jnp.concatenate([part.v for part in parts], axis=1).astype(jnp.float32)
    seen_BxWxS = jnp.concatenate(self.seen_BxWxS, axis=2)
    heads, dim = q_BxWxNxH.shape[2:]
    k_BxSxNxH, v_BxSxNxH = (
      jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k_BxSxKxH, v_BxSxKxH)
    )
    score = jnp.einsum("bwnh,bsnh->bnws", q_BxWxNxH.astype(jnp.float32), k_BxSxNxH) * dim**-0.5
    score = jnp.where(seen_BxWxS[:, None], score, -jnp.inf)
    top = score.max(-1, keepdims=True)
    weight = jnp.exp(score - jnp.where(top == -jnp.inf, 0.0, top))
    total = weight.sum(-1, keepdims=True)
    weight = weight / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bnws,bsnh->bwnh", weight, v_BxSxNxH).astype(q_BxWxNxH.dtype)


def prepare(mask: Mask, keys: Sequence[Keys], heads: Heads) -> Sight:
  """See `kernels_pallas.block_attention.prepare`."""
  return Sight(tuple(visible(mask, part) for part in keys), tuple(part.live_BxS for part in keys))
