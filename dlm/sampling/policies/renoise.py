"""Write what is sure, draw the rest anew: a block of random ids becomes text."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling import chance
from dlm.sampling.policies.entropy_bounded import within_budget
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, StatSpec, View


@dataclasses.dataclass(frozen=True)
class Renoise(Policy):
  """DiffusionGemma (google-deepmind/gemma): take sure tokens, draw all others anew at random.

  As gemma/diffusion/_sampler.py does it. A block begins as random ids; its model never sees the
  mask id. Every forward takes candidates of lowest entropy while those before them sum to at most
  `budget` nats, at least one, and draws all other slots anew at random: none is final before its
  block is. Logits are divided by a temperature that falls linearly from `hot` towards `cold`, and
  entropies are those of what is drawn from.

  A block ends as it stands when the best token is that of the canvas everywhere and the mean
  entropy is at most `still` nats; else after `steps` forwards, with a candidate in every slot (the
  authors leave random ids where the last forward rejects).

  Args:
    vocab: random ids are below it.
  """

  renoises = True
  timed = True
  vocab: int
  steps: int = 48
  hot: float = 0.8
  cold: float = 0.4
  budget: float = 0.1
  still: float = 0.005

  def __post_init__(self):
    if self.vocab < 2 or self.steps < 1:
      raise ValueError(f"renoise: vocab={self.vocab} must be at least 2, steps={self.steps} 1")
    if not 0 < self.cold <= self.hot:
      raise ValueError(f"renoise: cold={self.cold} must lie in (0, hot], hot={self.hot}")
    for name in ("budget", "still"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"renoise: {name}={getattr(self, name)} must not be negative")

  def most_forwards(self, slots: int) -> int:
    return self.steps

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True, current=True, confidence="shaped")

  def noise(self, key_B: Array, width: int, mask_id: int) -> Array:
    return chance.ids(key_B, width, self.vocab, mask_id)

  def temperature(self, step_B: Array) -> Array:
    return self.cold + (self.hot - self.cold) * (1 - step_B / self.steps)

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    stats = view.stats
    own_BxA = view.open_BxA & view.scored_BxA
    takes_BxA = within_budget(stats.entropy, -stats.entropy, own_BxA, self.budget)

    mean_B = jnp.where(own_BxA, stats.entropy, 0).sum(-1) / jnp.maximum(own_BxA.sum(-1), 1)
    stands_B = (~own_BxA | (stats.current == stats.top1)).all(-1) & (mean_B <= self.still)
    last_B = view.step_B + 1 >= self.steps

    random_BxA = self.noise(key_B, own_BxA.shape[1], view.mask_id)
    token_BxA = jnp.where(takes_BxA | last_B[:, None], stats.token, random_BxA)
    token_BxA = jnp.where(stands_B[:, None], view.tokens_BxA, token_BxA)
    return Decision(own_BxA, token_BxA, stay_B=~(stands_B | last_B)), state
