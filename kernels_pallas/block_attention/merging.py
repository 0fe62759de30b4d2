"""Attention to several sets of keys, each with a softmax of its own, becomes attention to all."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def merged(outs: Sequence[Array], lses: Sequence[Array], dtype: jnp.dtype) -> tuple[Array, Array]:
  """Of outs [..., H] and log-sum-exps to base 2 [...]; 0 and -inf where a query sees nothing."""
  if len(outs) == 1:
    return outs[0].astype(dtype), lses[0]
  lses = [lse[..., None] for lse in lses]
  top = functools.reduce(jnp.maximum, lses)
  top = jnp.where(top == -jnp.inf, 0.0, top)
  weights = [jnp.exp2(lse - top) for lse in lses]
  total = sum(weights)
  out = sum(weight * part for weight, part in zip(weights, outs, strict=True))
  out = (out / jnp.where(total == 0, 1.0, total)).astype(dtype)
  return out, (top + jnp.log2(total))[..., 0]


def refuse_cached(sights: Sequence[Any]) -> None:
  """NotImplementedError where a gradient would be of keys that are read where they are."""
  if any(sight.cached for sight in sights):
    raise NotImplementedError(
      'block_attention: the kernels differentiate no cached keys; use implementation="xla"'
    )
