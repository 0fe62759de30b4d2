"""Recompute everything."""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array, MaskRule, Policy, Progress


@dataclasses.dataclass(frozen=True)
class NoCache:
  """Every forward sees the whole canvas: what bidirectional models ask for. Exact for all."""

  cached = False
  commits = False
  provisional = False
  anchor = True
  settles = False

  def check(self, sees: MaskRule, block: int, policy: Policy) -> None:
    """Fits every model."""

  def refresh_B(self, at: Progress) -> Array:
    return jnp.ones_like(at.commits_B)

  def window_BxL(self, at: Progress) -> Array:
    return at.inside_BxL

  def widths(self, block: int, slots: int) -> tuple[int, ...]:
    return (slots,)

  def keep_BxL(self, at: Progress) -> Array:
    return jnp.zeros_like(at.inside_BxL)
