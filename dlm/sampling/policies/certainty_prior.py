"""Near what is known first."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, View


@dataclasses.dataclass(frozen=True)
class CertaintyPrior(Policy):
  """d2Cache, decoding (2509.23094): write the surest tokens first, those near known ones before.

  Its certainty prior, as its code does it (the paper was not read): a candidate's confidence counts
  by the certainty density of its slot, the share of a Gaussian around it that lies on known slots.
  All that stands before the row is known; what would stand behind it is as its last slot.

  Args:
    k: tokens a forward.
    sigma: width of the Gaussian in slots, 10 in their example. The smaller, the more the text is
      written from left to right.
  """

  scope = "canvas"
  k: int = 1
  sigma: float = 10.0

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f"certainty_prior: k={self.k} must be at least 1")
    if not self.sigma > 0:
      raise ValueError(f"certainty_prior: sigma={self.sigma} must be positive")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    score_BxL = confidence(view.stats) * self.density(view)
    write_BxL = select.top(score_BxL, view.masked_BxA, jnp.full_like(view.step_B, self.k))
    return Decision(write_BxL, view.stats.token), state

  def density(self, view: View) -> Array:
    """Share [B, L] of each slot's Gaussian, cut at six sigma, that lies on known slots."""
    reach = math.ceil(6 * self.sigma)
    kernel = jnp.exp(-((jnp.arange(-reach, reach + 1) / self.sigma) ** 2) / 2)
    unknown_BxL = view.masked_BxA | view.later_BxA
    last_Bx1 = view.inside_BxA.sum(-1, keepdims=True) - 1
    behind_Bx1 = jnp.take_along_axis(unknown_BxL, last_Bx1, axis=1)
    unknown_BxL |= ~view.inside_BxA & behind_Bx1
    unknown_BxS = jnp.pad(unknown_BxL, ((0, 0), (0, reach)))
    unknown_BxS = unknown_BxS.at[:, unknown_BxL.shape[1] :].set(behind_Bx1)

    def mass(unknown_S: Array) -> Array:
      return jnp.convolve(unknown_S, kernel, precision=jax.lax.Precision.HIGHEST)

    mass_BxS = jax.vmap(mass)(unknown_BxS.astype(jnp.float32))
    return 1 - mass_BxS[:, reach : -2 * reach] / kernel.sum()
