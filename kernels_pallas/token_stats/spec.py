"""What may be asked of one pass over the vocabulary, and what comes back."""

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array

CONFIDENCES = ("plain", "tempered", "shaped")
TOP_P_OF = ("top_k", "all")
TOP_P_RULES = ("reach", "within")


@dataclasses.dataclass(frozen=True)
class StatSpec:
  """Static: which statistics a policy needs. Hashable, so equal needs share one compile.

  Plain logits are `l = hidden @ unembed.T` (soft-capped if asked) without the forbidden ids,
  tempered ones `l / temperature` (temperature 0: l), and shaped ones those of them that top-k and
  top-p keep. The candidate is a draw from the softmax of the shaped logits (temperature 0: the
  argmax).

  `confidence` says of which logits the statistics are, and so what a candidate's probability is:
  "plain" in LLaDA's code; "tempered" in SDAR's evaluation; "shaped", also at temperature 0, in
  Dream (arXiv 2508.15487), SDAR's own sampler and P-ReAct (arXiv 2602.07035).
  """

  top2: bool = False  # second best logit, for margins
  entropy: bool = False
  current: bool = False  # logit of the token that stands there now
  gather: bool = False  # plain logits of a few ids that each row names
  soft: bool = False  # mean embedding under the softmax of the logits
  best: int = 0  # so many ids of the highest logits
  outside: tuple[int, ...] = ()  # ids without which `lse_outside` is taken; (): it is not
  confidence: str = "plain"  # whose statistics: those of plain, tempered or shaped logits
  temperature: float = 0.0  # 0: candidate = argmax; else a draw from softmax(l / temperature)
  per_row: bool = False  # each row has a temperature of its own, in place of that one
  top_k: int = 0  # 0: off. Ids below the k-th best logit are dropped; ties at it stay
  top_p: float = 1.0  # 1: off. Of the best ids a set of mass top_p stays
  top_p_rule: str = (
    "reach"  # the smallest of mass >= top_p; "within": the largest of mass <= top_p,
  )
  # and the best id in any case (BD3-LM, arXiv 2503.09573)
  top_p_of: str = "top_k"  # that mass is a share of what top-k keeps (SDAR), or of "all" (Dream)
  forbidden: tuple[int, ...] = ()  # ids that must not be chosen; their probability is 0

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f"StatSpec: temperature={self.temperature} must not be negative")
    if self.per_row and self.temperature:
      raise ValueError(
        f"StatSpec: temperature={self.temperature} must be 0 with per_row=True: rows have their own"
      )
    if self.best < 0:
      raise ValueError(f"StatSpec: best={self.best} must not be negative (0: none)")
    if self.top_k < 0:
      raise ValueError(f"StatSpec: top_k={self.top_k} must not be negative (0: off)")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"StatSpec: top_p={self.top_p} must lie in (0, 1] (1: off)")
    words = {"confidence": CONFIDENCES, "top_p_of": TOP_P_OF, "top_p_rule": TOP_P_RULES}
    for name, known in words.items():
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f"StatSpec: {name}={value!r} is not one of {', '.join(known)}")

  @property
  def chooses(self) -> bool:
    """Whether a policy chooses among several ids, and none may be drawn."""
    return self.gather or self.best > 1

  @property
  def draws(self) -> bool:
    """Whether candidates are drawn, those of some rows at least."""
    return self.per_row or self.temperature > 0

  def divisor(self, temperature_Rx1: Array | None) -> float | Array:
    """What tempered logits are divided by, [R, 1] if `per_row`."""
    if self.per_row:
      return jnp.where(temperature_Rx1 > 0, temperature_Rx1, 1.0)
    return self.temperature or 1.0

  def told(self, plain: Array, tempered: Array, shaped: Array) -> Array:
    """The logits whose statistics are asked for."""
    return {"plain": plain, "tempered": tempered, "shaped": shaped}[self.confidence]

  def cuts(self, vocab: int, inputs: "Inputs") -> bool:
    """Whether top-k or top-p matter: at temperature 0 they leave the argmax as it is."""
    cutting = 0 < self.top_k < vocab or self.top_p < 1 or inputs.top_p_R is not None
    return cutting and (self.confidence == "shaped" or self.draws)

  def share(self, inputs: "Inputs", rows: int) -> Array:
    """float32 [R]: the top-p of each row."""
    own_R = inputs.top_p_R
    return jnp.full(rows, self.top_p, jnp.float32) if own_R is None else own_R


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Inputs:
  """The arrays that a spec asks for (see `token_stats`), None where it does not."""

  key_data_Rx2: Array | None = None  # the two words of each row's key
  current_R: Array | None = None
  gather_id_RxJ: Array | None = None
  embed_VxD: Array | None = None
  temperature_Rx1: Array | None = None
  # Asked by the caller, and not by the spec:
  divide_R: Array | None = None  # float32
  top_p_R: Array | None = None  # float32, in place of the spec's
  allowed_RxU: Array | None = None  # uint32: of each id a bit, see `token_stats`


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TokenStats:
  """Per position. Fields not asked for are None. Logits and lse are float32, entropy in nats.

  Probability of the candidate: `exp(logit - lse)`. Ties go to the lowest id.
  """

  token: Array  # int32 candidate, noise included
  logit: Array  # its logit, without the noise
  top1: Array  # best logit
  lse: Array  # logsumexp of the logits
  top2: Array | None = None
  entropy: Array | None = None
  current: Array | None = None
  lse_outside: Array | None = None  # logsumexp over the ids that are not in `outside`
  soft: Array | None = None  # float32 [R, D] mean embedding
  gathered: Array | None = None  # [R, J] plain logits of the ids asked for, in any case
  best: Array | None = None  # int32 [R, J] ids of the highest logits, from the highest on
  best_logit: Array | None = None  # [R, J] theirs; -inf where no more may be chosen
