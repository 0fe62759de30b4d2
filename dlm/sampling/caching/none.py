"""Recompute everything."""

import dataclasses

import jax.numpy as jnp

from dlm.types import Array, MaskRule


@dataclasses.dataclass(frozen=True)
class NoCache:
  """Every forward sees the whole canvas: what bidirectional models ask for. Exact for all."""

  cached = False

  def check(self, sees: MaskRule, block: int) -> None:
    """Fits every model."""

  def refresh_B(self, step_B: Array, fresh_B: Array) -> Array:
    return jnp.ones_like(fresh_B)

  def write_BxW(self, slot_BxW: Array, start_B: Array) -> Array:
    return jnp.zeros_like(slot_BxW, bool)
