"""What kernels of any device do around their parts: of each a softmax, and these are merged."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas import shards
from kernels_pallas.block_attention.spec import Part

Array = jax.Array


def on_each_device(
  attend: Callable[[Any, Array, tuple[Part, ...]], Array],
  sight: Any,
  q_BxWxNxH: Array,
  parts: Sequence[Part],
) -> Array:
  """`attend(sight, q, parts)`; on a mesh each device has its rows and heads."""
  by_row = jax.tree.map(lambda x: "b" if x.ndim else "", sight)
  split_parts = tuple(
    Part("b.t.", "b.t.") if part.layer is None else Part(".b.t.", ".b.t.", "") for part in parts
  )
  split = (by_row, "b.t.", split_parts)
  return shards.run(attend, split, "b.t.", sight, q_BxWxNxH, tuple(parts))


def check_count(part: Part, prepared: int) -> None:
  """ValueError: a part has another number of keys than `prepare` was told."""
  if part.k.shape[-3] != prepared:
    raise ValueError(
      f"block_attention: a part of {part.k.shape[-3]} keys, where {prepared} were prepared for"
    )


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
