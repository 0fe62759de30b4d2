"""Credit for what a position keeps predicting."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dlm.sampling.policy import Wrapper
from dlm.types import Array, Decision, StatSpec, TokenStats, View


@struct.dataclass
class CreditState:
  id_BxAxJ: Array  # the ids that have credit; -1: none
  credit_BxAxJ: Array  # float32, 0 where there is none
  inner: Any


@dataclasses.dataclass(frozen=True)
class Credit(Wrapper):
  """dInfer, credit (2510.08666): ids that were predicted before count for more; `inner` decides.

  As its code does it. With every forward all credit shrinks by `decay`; then a masked position's
  best id, of probability p, gains p^gamma. What decides there are the logits plus alpha * log(1 +
  credit), this forward's credit included.

  Exact without a second look at the vocabulary: the best id of all has credit, so the winner is
  among the ids that have, and only theirs change the sum of the exponentials.

  Args:
    ids: how many ids can have credit at a position. Exact for blocks that take no more forwards;
      after that the id with the least loses it (with the default decay of 0.8, mostly below 0.001).
  """

  alpha: float = 0.7
  decay: float = 0.8
  gamma: float = 0.2
  ids: int = 32

  def __post_init__(self):
    super().__post_init__()
    if self.alpha < 0:
      raise ValueError(f"credit: alpha={self.alpha} must not be negative")
    if not 0 <= self.decay <= 1:
      raise ValueError(f"credit: decay={self.decay} must lie in [0, 1]")
    if self.ids < 1:
      raise ValueError(f"credit: ids={self.ids} must be at least 1")
    reads_more = self.inner.needs() != StatSpec() or self.inner.scope != "block"
    self.refuse(reads_more, "may read candidates and confidences alone, those of its block")
    self.refuse(self.inner.draft_span, "drafts: its slots move on, and credit would stand still")

  def needs(self) -> StatSpec:
    return StatSpec(gather=True)

  def enter(self, masked_BxA: Array, state: CreditState | None) -> CreditState:
    shape = (*masked_BxA.shape, self.ids)
    return CreditState(
      id_BxAxJ=jnp.full(shape, -1, jnp.int32),
      credit_BxAxJ=jnp.zeros(shape, jnp.float32),
      inner=self.inner.enter(masked_BxA, None if state is None else state.inner),
    )

  def inner_state(self, state: CreditState) -> Any:
    return state.inner

  def gather_ids(self, state: CreditState) -> Array:
    return state.id_BxAxJ

  def decide(self, view: View, state: CreditState, key_B: Array) -> tuple[Decision, CreditState]:
    id_BxAxJ, credit_BxAxJ, logit_BxAxJ = self._credited(view, state)
    bonus_BxAxJ = self.alpha * jnp.log1p(credit_BxAxJ)
    stats = _fused(view.stats, id_BxAxJ, logit_BxAxJ, bonus_BxAxJ)
    decision, inner = self.inner.decide(view.replace(stats=stats), state.inner, key_B)
    return decision, CreditState(id_BxAxJ, credit_BxAxJ, inner)

  def _credited(self, view: View, state: CreditState) -> tuple[Array, Array, Array]:
    """Ids, their credit after this forward, and their logits."""
    stats = view.stats
    p_BxA = jnp.nan_to_num(jnp.exp(stats.top1 - stats.lse))
    gain_BxAx1 = jnp.where(view.masked_BxA, p_BxA**self.gamma, 0)[:, :, None]
    credit_BxAxJ = self.decay * state.credit_BxAxJ
    known_BxAxJ = state.id_BxAxJ == stats.token[:, :, None]
    # A new id takes the place of the one with the least credit, first of those without any.
    least_BxA = jnp.argmin(credit_BxAxJ, axis=-1)
    least_BxAxJ = jax.nn.one_hot(least_BxA, self.ids, dtype=bool)
    news_BxAxJ = least_BxAxJ & (view.masked_BxA & ~known_BxAxJ.any(-1))[:, :, None]
    credit_BxAxJ = jnp.where(news_BxAxJ, 0, credit_BxAxJ)
    credit_BxAxJ += jnp.where(known_BxAxJ | news_BxAxJ, gain_BxAx1, 0)
    id_BxAxJ = jnp.where(news_BxAxJ, stats.token[:, :, None], state.id_BxAxJ)
    logit_BxAxJ = jnp.where(news_BxAxJ, stats.logit[:, :, None], stats.gathered)
    logit_BxAxJ = jnp.where(view.masked_BxA[:, :, None], logit_BxAxJ, -jnp.inf)
    return id_BxAxJ, credit_BxAxJ, logit_BxAxJ


def _fused(
  stats: TokenStats, id_BxAxJ: Array, logit_BxAxJ: Array, bonus_BxAxJ: Array
) -> TokenStats:
  """The statistics of the logits plus `bonus`; the best id of all is one of those given."""
  fused_BxAxJ = logit_BxAxJ + bonus_BxAxJ
  best_BxA = fused_BxAxJ.max(-1)
  # Equal logits: the lowest id, as in a pass over the vocabulary.
  tied_BxAxJ = fused_BxAxJ == best_BxA[:, :, None]
  last = jnp.iinfo(jnp.int32).max
  token_BxA = jnp.where(tied_BxAxJ, id_BxAxJ, last).min(-1)
  found_BxA = jnp.isfinite(best_BxA)  # else nothing has credit, or the model is broken
  more_BxAxJ = jnp.exp(logit_BxAxJ - stats.lse[:, :, None]) * jnp.expm1(bonus_BxAxJ)
  logit_BxA = jnp.where(found_BxA, best_BxA, stats.logit)
  return dataclasses.replace(
    stats,
    token=jnp.where(found_BxA, token_BxA, stats.token),
    logit=logit_BxA,
    top1=logit_BxA,
    lse=stats.lse + jnp.log1p(more_BxAxJ.sum(-1)),
  )
