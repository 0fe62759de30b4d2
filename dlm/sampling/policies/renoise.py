"""Write what is sure, draw the rest anew: a block of random ids becomes text."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from dlm.sampling import chance
from dlm.sampling.policies.entropy_bounded import within_budget
from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, StatSpec, View


class Seen(NamedTuple):
  """What a block's last forward held for likeliest, and how often in a row it had been that."""

  best_BxA: Array  # ids; -1 before the first forward
  repeats_B: Array


@dataclasses.dataclass(frozen=True)
class Renoise(Policy):
  """DiffusionGemma (transformers 5.24): take sure tokens, draw all others anew at random.

  A block begins as random ids; its model never sees the mask id. Every forward takes candidates of
  lowest entropy while those before them sum to at most `budget` nats, at least one, and draws all
  other slots anew at random: nothing is kept from forward to forward. Logits are divided by a
  temperature that falls linearly from `hot` towards `cold`, and entropies are those of what is
  drawn from. The model is told what it predicted a forward ago (`conditions`).

  A block ends when the likeliest tokens are those of the `stable` forwards before and the mean
  entropy is below `still` nats, else after `steps` forwards. It ends as the likeliest tokens of its
  last forward. (The sampler in google-deepmind/gemma compares them with the canvas instead, and
  leaves the canvas as it is, with random ids where the last forward was not sure.)

  Args:
    vocab: random ids are below it.
    stable: forwards in a row that must agree with the last one; 0: low entropy is enough.
    conditions: the model conditions itself: beside each slot of the block it is given the mean
      embedding of its last prediction.
  """

  renoises = True
  timed = True
  vocab: int
  steps: int = 48
  hot: float = 0.8
  cold: float = 0.4
  budget: float = 0.1
  still: float = 0.005
  stable: int = 1
  conditions: bool = False

  def __post_init__(self):
    if self.vocab < 2 or self.steps < 1:
      raise ValueError(f"renoise: vocab={self.vocab} must be at least 2, steps={self.steps} 1")
    if not 0 < self.cold <= self.hot:
      raise ValueError(f"renoise: cold={self.cold} must lie in (0, hot], hot={self.hot}")
    for name in ("budget", "still", "stable"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"renoise: {name}={getattr(self, name)} must not be negative")

  def most_forwards(self, slots: int) -> int:
    return self.steps

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True, best=1, soft=self.conditions, confidence="shaped")

  def enter(self, masked_BxA: Array, state: Seen | None) -> Seen:
    return Seen(
      jnp.full(masked_BxA.shape, -1, jnp.int32), jnp.zeros(masked_BxA.shape[0], jnp.int32)
    )

  def noise(self, key_B: Array, width: int, mask_id: int) -> Array:
    return chance.ids(key_B, width, self.vocab, mask_id)

  def soft_weight(self, turn_B: Array) -> Array | None:
    return jnp.ones(turn_B.shape) if self.conditions else None

  def temperature(self, step_B: Array) -> Array:
    return self.cold + (self.hot - self.cold) * (1 - step_B / self.steps)

  def decide(self, view: View, state: Seen, key_B: Array) -> tuple[Decision, Seen]:
    stats, best_BxA = view.stats, view.stats.best[:, :, 0]
    own_BxA = view.open_BxA & view.scored_BxA
    takes_BxA = within_budget(stats.entropy, -stats.entropy, own_BxA, self.budget)

    mean_B = jnp.where(own_BxA, stats.entropy, 0).sum(-1) / jnp.maximum(own_BxA.sum(-1), 1)
    same_B = (~own_BxA | (best_BxA == state.best_BxA)).all(-1)
    repeats_B = jnp.where(same_B, state.repeats_B + 1, 0)
    ends_B = (repeats_B >= self.stable) & (mean_B < self.still)
    ends_B |= view.step_B + 1 >= self.steps

    random_BxA = self.noise(key_B, own_BxA.shape[1], view.mask_id)
    token_BxA = jnp.where(takes_BxA, stats.token, random_BxA)
    token_BxA = jnp.where(ends_B[:, None], best_BxA, token_BxA)
    return Decision(own_BxA, token_BxA, stay_B=~ends_B), Seen(best_BxA, repeats_B)
