"""Attention to several sets of keys, each with a softmax of its own, becomes attention to all."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def merged(outs: Sequence[Array], lses: Sequence[Array], dtype: jnp.dtype) -> Array:
  """Of outs [..., H] and log-sum-exps to base 2 [...]; 0 where a query sees nothing at all."""
  if len(outs) == 1:
    return outs[0].astype(dtype)
  lses = [lse[..., None] for lse in lses]
  top = functools.reduce(jnp.maximum, lses)
  top = jnp.where(top == -jnp.inf, 0.0, top)
  weights = [jnp.exp2(lse - top) for lse in lses]
  total = sum(weights)
  out = sum(weight * part for weight, part in zip(weights, outs, strict=True))
  return (out / jnp.where(total == 0, 1.0, total)).astype(dtype)
