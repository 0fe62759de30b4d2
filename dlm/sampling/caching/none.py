"""Recompute everything."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.caching.plan import CachePlan
from dlm.types import Array, Progress


@dataclasses.dataclass(frozen=True)
class NoCache(CachePlan):
  """No cache: every forward is over the whole canvas. Exact for every model."""

  cached = False

  def refresh_B(self, at: Progress) -> Array:
    return jnp.ones_like(at.commits_B)

  def window_BxL(self, at: Progress) -> Array:
    return at.inside_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (slots,)

  def keep_BxL(self, at: Progress) -> Array:
    return jnp.zeros_like(at.inside_BxL)
