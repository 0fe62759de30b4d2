"""A refresh every few forwards."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from dlm.types import Array, MaskRule, Policy, Progress


@dataclasses.dataclass(frozen=True)
class Interval:
  """Keeps all keys; computes the active block, and every `interval` forwards the whole canvas.

  The simplest of the caches by age: dLLM-Cache (arXiv 2506.06295) refreshes prompt and response at
  two such intervals, d3LLM (arXiv 2601.07568) its prefix at one. Between refreshes it is cache
  "dual"; with interval=1 it is no cache. Approximate for bidirectional models.
  """

  interval: int = 8

  cached: ClassVar[bool] = True
  commits: ClassVar[bool] = False
  provisional: ClassVar[bool] = False
  anchor: ClassVar[bool] = True
  settles: ClassVar[bool] = False

  def __post_init__(self):
    if self.interval < 1:
      raise ValueError(f"interval={self.interval} must be at least 1")

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Fits every model and policy: statistics of slots outside the window are never used."""

  def refresh_B(self, at: Progress) -> Array:
    return at.step_B % self.interval == 0

  def window_BxL(self, at: Progress) -> Array:
    return at.active_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (block,)

  def keep_BxL(self, at: Progress) -> Array:
    return jnp.ones_like(at.inside_BxL)
