"""Draft several tokens, and keep those that the model bears out once it sees what precedes them."""

import dataclasses

import jax.numpy as jnp

from dlm.sampling.policy import Policy
from dlm.types import Array, Decision, StatSpec, View

RULES = ("exact", "kept", "sure")


@dataclasses.dataclass(frozen=True)
class Introspective(Policy):
  """I-DLM (2604.11035): draft several tokens, keep those that the model itself bears out.

  Introspective strided decoding of a causal model; stride=1 is autoregressive. A window holds the
  last settled token, up to stride - 1 drafts and masks. One forward checks the drafts, whose
  predecessors it now sees, settles the run of good ones and one token more, and if all were good
  drafts stride - 1 new ones from the masks. Up to `stride` tokens a forward.

  rule="exact" keeps a draft iff it is the token that the check draws itself. Candidates of a slot
  are drawn with the same noise at every forward (`coupled`): the text is then that of token by
  token sampling with the same key, at any temperature - our coupling, in place of the authors'
  ratio test. "kept" keeps a draft that top-k and top-p keep (their fast_verify, top_k=5), "sure"
  one with probability >= `threshold` (their confidence_accept): those two lose exactness.

  Given tokens among the open slots count as drafts that are right.

  Args:
    stride: tokens settled at most by a forward, N in the paper; their 4.
    checked: drafts that are checked, the others are taken on trust; 0: all.
    correct: settled drafts are replaced by the check's own candidate; keys stay those of the draft
      (their output_correction).
  """

  coupled = True
  stride: int = 4
  rule: str = "exact"
  threshold: float = 0.0
  checked: int = 0
  correct: bool = False

  def __post_init__(self):
    if self.stride < 1 or self.checked < 0:
      raise ValueError(
        f"introspective: stride={self.stride} must be at least 1, checked={self.checked} at least 0"
      )
    if self.rule not in RULES:
      raise ValueError(f"introspective: rule={self.rule!r} is not one of {', '.join(RULES)}")
    if not 0 <= self.threshold <= 1:
      raise ValueError(f"introspective: threshold={self.threshold} must lie in [0, 1]")

  @property
  def draft_span(self) -> int:
    """Slots that a forward reads or predicts: the sampler's block."""
    return 2 * self.stride

  def needs(self) -> StatSpec:
    confidence = "shaped" if self.rule == "kept" else "plain"
    return StatSpec(current=self.rule != "exact", confidence=confidence)

  def decide(self, view: View, state: tuple[()], key_B: Array) -> tuple[Decision, tuple[()]]:
    token_BxA = view.stats.token if self.correct else None
    return settled(view, self._good(view), ahead=self.stride - 1, token_BxA=token_BxA), state

  def _good(self, view: View) -> Array:
    stats = view.stats
    if self.rule == "exact":
      good_BxA = stats.token == view.tokens_BxA
    elif self.rule == "kept":
      good_BxA = stats.current > -jnp.inf
    else:
      good_BxA = jnp.exp(stats.current - stats.lse) >= self.threshold
    if self.checked:
      good_BxA |= (jnp.arange(good_BxA.shape[1]) > self.checked)[None, :]
    return good_BxA


def settled(
  view: View, good_BxA: Array, *, ahead: int = 0, token_BxA: Array | None = None
) -> Decision:
  """Settles the leading run of good drafts and one token more; what else was drafted is undone.

  Offset 0 of the view is the last settled token; offset j is predicted by j - 1, which the forward
  has computed for all but the last. The token more is the model's own candidate.

  Args:
    good_BxA: bool; where a token stands, whether it is right.
    ahead: candidates drafted behind it where all drafts were good.
    token_BxA: written in place of settled drafts; None: they stay.
  """
  offset_1xA = jnp.arange(view.tokens_BxA.shape[1])[None, :]
  there_BxA = (view.tokens_BxA != view.mask_id) & view.inside_BxA
  there_BxA &= offset_1xA < view.tokens_BxA.shape[1] - 1
  there_BxA |= offset_1xA == 0
  drafts_B = jnp.cumprod(there_BxA, axis=1).sum(-1) - 1
  right_BxA = there_BxA & (good_BxA | ~view.open_BxA | (offset_1xA == 0))
  next_Bx1 = jnp.cumprod(right_BxA, axis=1).sum(-1, keepdims=True)
  ahead_Bx1 = jnp.where(next_Bx1[:, 0] > drafts_B, ahead, 0)[:, None]
  settle_BxA = (offset_1xA > 0) & (offset_1xA <= next_Bx1)
  draft_BxA = (offset_1xA > next_Bx1) & (offset_1xA <= next_Bx1 + ahead_Bx1)
  undo_BxA = (offset_1xA > next_Bx1) & ~draft_BxA & (view.tokens_BxA != view.mask_id)
  drafted_BxA = view.tokens_BxA if token_BxA is None else token_BxA
  new_BxA = jnp.where(offset_1xA < next_Bx1, drafted_BxA, view.stats.token)
  new_BxA = jnp.where(undo_BxA, view.mask_id, new_BxA)
  return Decision(settle_BxA | draft_BxA | undo_BxA, new_BxA, advance_B=next_Bx1[:, 0])
