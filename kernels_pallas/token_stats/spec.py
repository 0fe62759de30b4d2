"""What may be asked of one pass over the vocabulary, and what comes back."""

import dataclasses

import jax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class StatSpec:
  """Static: which statistics a policy needs. Hashable, so equal needs share one compile.

  Statistics are those of the plain logits `l = hidden @ unembed.T` (soft-capped if asked) without
  the forbidden ids: temperature, top-k and top-p shape only the candidate. Confidence therefore is
  untempered, as in LLaDA's code and SDAR's evaluation.
  """

  top2: bool = False  # second best logit, for margins
  entropy: bool = False
  current: bool = False  # logit of the token that stands there now
  temperature: float = 0.0  # 0: candidate = argmax; else a draw from softmax(l / temperature)
  top_k: int = 0  # 0: off. Candidates below the k-th best logit are dropped; ties at it stay
  top_p: float = 1.0  # 1: off. Smallest set of best tempered candidates with mass >= top_p
  forbidden: tuple[int, ...] = ()  # ids that must not be chosen; their probability is 0

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f"StatSpec: temperature={self.temperature} must not be negative")
    if self.top_k < 0:
      raise ValueError(f"StatSpec: top_k={self.top_k} must not be negative (0: off)")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"StatSpec: top_p={self.top_p} must lie in (0, 1] (1: off)")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TokenStats:
  """Per position. Fields not asked for are None. Logits and lse are float32, entropy in nats.

  Probability of the candidate: `exp(logit - lse)`. Ties go to the lowest id.
  """

  token: Array  # int32 candidate, noise included
  logit: Array  # its plain logit
  top1: Array  # best plain logit
  lse: Array  # logsumexp of the plain logits
  top2: Array | None = None
  entropy: Array | None = None
  current: Array | None = None
