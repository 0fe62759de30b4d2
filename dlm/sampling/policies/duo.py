"""The reverse process of uniform-state diffusion: random ids become text, step by step."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.sampling import chance
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, Schedule, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Duo(Policy):
  """Duo (2506.10892): at every step a token stays, becomes a draw of the model, or any id again.

  A block begins as random ids; its model never sees the mask id. Times are a uniform grid of
  `steps` a block from 1 to 0, each a forward; tokens may change up to the last of them. A sample of
  the model at temperature 1.

  Args:
    vocab: random ids are below it.
    schedule: that of training.
  """

  renoises = True
  levels = True
  timed = True
  vocab: int
  schedule: Schedule
  steps: int = 128

  def __post_init__(self):
    if self.vocab < 3 or self.steps < 1:
      raise ValueError(f"duo: vocab={self.vocab} must be at least 3, steps={self.steps} 1")

  def most_forwards(self, slots: int) -> int:
    return self.steps

  def needs(self) -> StatSpec:
    return StatSpec(current=True, confidence="shaped")

  def noise(self, key_B: Array, width: int, mask_id: int) -> Array:
    return chance.ids(key_B, width, self.vocab, mask_id)

  def level(self, step_B: Array) -> Array:
    return 1 - self._alpha(step_B)

  def _alpha(self, step_B: Array) -> Array:
    return self.schedule.alpha(1 - jnp.minimum(step_B, self.steps) / self.steps)

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    alpha_t_Bx1 = self._alpha(view.step_B)[:, None]
    alpha_s_Bx1 = self._alpha(view.step_B + 1)[:, None]
    p_BxA = jnp.exp(view.stats.current - view.stats.lse)
    n = self.vocab - (view.mask_id < self.vocab)
    stays_BxA, drawn_BxA, _ = posterior(p_BxA, alpha_s_Bx1, alpha_t_Bx1, n)
    key_Bx2 = jax.vmap(jax.random.split)(key_B)
    u_BxA = chance.uniform(key_Bx2[:, 0], view)
    random_BxA = self.noise(key_Bx2[:, 1], u_BxA.shape[1], view.mask_id)
    moved_BxA = jnp.where(u_BxA < stays_BxA + drawn_BxA, view.stats.token, random_BxA)
    token_BxA = jnp.where(u_BxA < stays_BxA, view.tokens_BxA, moved_BxA)
    own_BxA = view.open_BxA & view.scored_BxA
    return Decision(own_BxA, token_BxA, stay_B=view.step_B + 1 < self.steps), state


def posterior(
  p_BxA: Array, alpha_s_Bx1: Array, alpha_t_Bx1: Array, n: int
) -> tuple[Array, Array, Array]:
  """Duo (2506.10892): what becomes of a token from time t back to time s, among n ids.

  Args:
    p_BxA: probability that the clean token is the one that stands there.
    alpha_s_Bx1, alpha_t_Bx1: survival of a token at s and at t > s.

  Returns:
    Probabilities, [B, A] each, that sum to 1: it stays; it becomes a draw of the clean token; it
    becomes any id.
  """
  alpha_ts_Bx1 = alpha_t_Bx1 / alpha_s_Bx1
  total_BxA = n * alpha_t_Bx1 * p_BxA + 1 - alpha_t_Bx1
  stays_BxA = (n * alpha_t_Bx1 * p_BxA + alpha_ts_Bx1 - alpha_t_Bx1) / total_BxA
  drawn_BxA = (alpha_s_Bx1 - alpha_t_Bx1) / total_BxA
  return stays_BxA, drawn_BxA, (1 - alpha_ts_Bx1) * (1 - alpha_s_Bx1) / total_BxA
