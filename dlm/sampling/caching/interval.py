"""A refresh every few forwards."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.caching.plan import CachePlan
from dlm.types import Array, Progress


@dataclasses.dataclass(frozen=True)
class Interval(CachePlan):
  """dLLM-Cache, simplified (2506.06295): compute the block, and now and then the whole canvas.

  All keys are kept, and renewed every `interval` forwards: the simplest of the caches by age.
  dLLM-Cache refreshes prompt and response at two such intervals, d3LLM (2601.07568) its prefix at
  one. Between refreshes it is cache "dual"; with interval=1 it is no cache. Approximate for
  bidirectional models.
  """

  whole_blocks = True
  packs = "canvas"
  interval: int = 8

  def __post_init__(self):
    if self.interval < 1:
      raise ValueError(f"interval={self.interval} must be at least 1")

  def refresh_B(self, at: Progress) -> Array:
    return at.step_B % self.interval == 0

  def window_BxL(self, at: Progress) -> Array:
    return at.active_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (block,)

  def keep_BxL(self, at: Progress) -> Array:
    return jnp.ones_like(at.inside_BxL)
