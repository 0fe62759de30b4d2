"""As many tokens as an entropy budget allows."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.sampling import select
from dlm.sampling.policy import Policy
from dlm.sampling.score import confidence
from dlm.types import Array, Decision, StatSpec, View

RULES = ("excess", "total")
ORDERS = ("entropy", "confidence")


@dataclasses.dataclass(frozen=True)
class EntropyBounded(Policy):
  """EB-Sampler (2505.24857): write as many tokens as an entropy budget allows, at least one.

  The longest run of best ones whose entropies stay within `budget` nats. Written together, tokens
  differ from their joint law by at most the sum of their entropies less the largest of them.
  rule="excess" bounds that: sum - max <= budget, as the EB-Sampler does; with order="entropy" it is
  DiffusionGemma's acceptance too, with order="confidence" that of DiffuTester's code (arXiv
  2509.24975). rule="total" bounds the whole sum, sum < budget: SDAR's JetEngine (arXiv 2510.06303),
  whose entropies are of the tempered and cut distribution.

  Args:
    budget: nats a forward; JetEngine 0.35, DiffuTester and DiffusionGemma 0.1.
    order: what "best" means: the lowest entropy, or the candidate's probability.
  """

  budget: float = 0.1
  rule: str = "excess"
  order: str = "entropy"

  def __post_init__(self):
    if not self.budget >= 0:
      raise ValueError(f"entropy_bounded: budget={self.budget} must not be negative")
    for name, known in (("rule", RULES), ("order", ORDERS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"entropy_bounded: {name}={getattr(self, name)!r} is not one of {', '.join(known)}"
        )

  def needs(self) -> StatSpec:
    return StatSpec(entropy=True, confidence="shaped" if self.rule == "total" else "plain")

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    entropy_BxA = view.stats.entropy
    score_BxA = -entropy_BxA if self.order == "entropy" else confidence(view.stats)
    write_BxA = within_budget(entropy_BxA, score_BxA, view.masked_BxA, self.budget, self.rule)
    return Decision(write_BxA, view.stats.token), state


def within_budget(
  entropy_BxA: Array, score_BxA: Array, eligible_BxA: Array, budget: float, rule: str = "excess"
) -> Array:
  """Bool: the longest run of best eligible positions that the rule allows; at least one."""
  rank_BxA = select.rank(score_BxA, eligible_BxA)
  ranked_BxA = jnp.take_along_axis(entropy_BxA, jnp.argsort(rank_BxA, axis=-1), axis=-1)
  total_BxA = jnp.cumsum(ranked_BxA, axis=-1)
  if rule == "excess":
    fits_BxA = total_BxA - jax.lax.cummax(ranked_BxA, axis=1) <= budget
  else:
    fits_BxA = total_BxA < budget
  n_B = jnp.maximum(jnp.cumprod(fits_BxA, axis=-1).sum(-1), 1)  # the first that fails ends it
  return eligible_BxA & (rank_BxA < n_B[:, None])
