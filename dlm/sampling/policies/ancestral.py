"""The reverse process of absorbing diffusion, step by step."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import chance
from dlm.types import Array, Decision, Schedule, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Ancestral:
  """From t to s each masked token is written with probability (alpha_s - alpha_t) / (1 - alpha_t).

  MDLM, arXiv 2406.07524, 3.2.3 (posterior of the absorbing process), over a uniform grid of `steps`
  times a block from 1 to 0; the last step writes all that is left. It is a sample of the model at
  temperature 1: other temperatures are the user's choice.
  """

  scope = "block"
  schedule: Schedule
  steps: int = 128

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"ancestral: steps={self.steps} must be at least 1")

  def needs(self) -> StatSpec:
    return StatSpec()

  def enter(self, masked_BxA: Array, state: tuple[()] | None) -> tuple[()]:
    return ()

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    t_B = 1 - view.step_B / self.steps
    s_B = 1 - (view.step_B + 1) / self.steps
    alpha_t_B, alpha_s_B = self.schedule.alpha(t_B), self.schedule.alpha(s_B)
    chance_B = (alpha_s_B - alpha_t_B) / jnp.maximum(1 - alpha_t_B, 1e-9)
    chance_B = jnp.where(view.step_B >= self.steps - 1, 1.0, chance_B)
    u_BxA = chance.uniform(key_B, view.masked_BxA.shape[1])
    write_BxA = view.masked_BxA & (u_BxA < chance_B[:, None])
    return Decision(write_BxA, view.stats.token), state
