"""The reverse process of absorbing diffusion, step by step."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import chance
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, Schedule, View


@dataclasses.dataclass(frozen=True)
class Ancestral(Policy):
  """MDLM (2406.07524): write each token by a coin, as the reverse of absorbing diffusion does.

  From time t to s a masked token is written with probability (alpha_s - alpha_t) / (1 - alpha_t)
  (3.2.3). Times are a uniform grid of `steps` a block from 1 to 0; the last step writes all that is
  left. It is a sample of the model at temperature 1: other temperatures are the user's choice.

  Steps that write nothing ask the model nothing: it would answer as before (the authors' cache).
  So forwards are at most the tokens, however many the steps; with ever more of them each forward
  writes one token, in a random order, which is the first-hitting sampler: policy "fixed" with k=1
  and order="random" (arXiv 2409.02908; BD3-LM, 2503.09573).
  """

  timed = True
  schedule: Schedule
  steps: int = 128

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"ancestral: steps={self.steps} must be at least 1")

  def enter(self, masked_BxA: Array, state: Array | None) -> Array:
    """State: steps taken in the block."""
    return jnp.zeros(masked_BxA.shape[0], jnp.int32)

  def decide(self, view: View, state: Array, key_B: Array) -> tuple[Decision, Array]:
    """Draws the step at which each token is written, and takes all steps up to the first of them.

    A token that is masked before step i still is after step j with probability level_j / level_i,
    so what was drawn at earlier forwards may be forgotten.
    """
    level_T = 1 - self.schedule.alpha(1 - jnp.arange(self.steps + 1) / self.steps)
    u_BxA = chance.uniform(key_B, view)
    last_BxA = jnp.searchsorted(-level_T, -u_BxA * level_T[state][:, None], side="left")
    written_BxA = jnp.clip(last_BxA, state[:, None] + 1, self.steps).astype(jnp.int32)
    step_B = jnp.where(view.masked_BxA, written_BxA, self.steps).min(-1)
    write_BxA = view.masked_BxA & (written_BxA == step_B[:, None])
    return Decision(write_BxA, view.stats.token), step_B
