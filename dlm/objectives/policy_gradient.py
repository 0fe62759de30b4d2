"""Reinforcement learning of completions: one loss, of which each paper's is a table of choices.

The table is a config: configs/train/rl.py holds those of d1, wd1, coupled-GRPO, ESPO, SPG, TraceRL
and LightningRL.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.critic import Critic
from dlm.objectives.cross_entropy import cross_entropy, predict
from dlm.objectives.estimators.estimator import Estimator, answer, by_row
from dlm.objectives.estimators.trace import Trace
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, LossSum, MaskRule, Noisy, Params

RATIOS = ("token", "row", "none")
PER = ("token", "sequence", "length", "row", "slot", "state")
KINDS = ("none", "k1", "k1_score", "k2", "k3")
ANCHORS = ("reference", "old")


@dataclasses.dataclass(frozen=True)
class OfCompletions(Objective):
  """What objectives share that learn from an estimate of log p(completion).

  Args:
    mask_id: id of [MASK].
    estimator: one of `dlm.objectives.estimators`.
  """

  mask_id: int
  estimator: Estimator
  traced = True
  rewarded = True
  teacher_shift = 0

  def __post_init__(self):
    streams.check_mask_id(type(self).__name__, self.mask_id)

  @property
  def shift(self) -> int:
    return self.estimator.shift

  @property
  def shiftable(self) -> bool:
    return not self.estimator.shift

  @property
  def block(self) -> int | None:
    return self.estimator.block

  @property
  def attention(self) -> MaskRule:
    return self.estimator.attention

  @property
  def interleaved(self) -> bool:
    return self.estimator.interleaved

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    return self.estimator.draw(key, batch)

  def copies(self, draws: dict[str, Array], batch: Batch) -> Noisy:
    """The estimator's copies of the rows. A loss is a mean already, so all of them count 1."""
    noisy = self.estimator.noisy(draws, batch, self.mask_id)
    count = len(noisy.count_B)
    return noisy.replace(
      count_B=jnp.full(count, 1 / count),
      extra=noisy.extra | {"advantage_B": batch.extra["advantage_B"]},
    )

  def estimate(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Aux]:
    """The estimator's log-probabilities by token, [B, L]."""
    head, aux = predict(denoise, params, noisy)
    return self.of_head(head, noisy), aux

  def of_head(self, head: LogitHead, noisy: Noisy) -> Array:
    head, noisy = self.estimator.mixed(head, noisy)
    return self.estimator.tokens(-cross_entropy(head, noisy, self.forbidden), noisy)

  def losses(self, denoise: Any, params: Any, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """Of every copy's tokens, the estimate's part and -log p. `denoise`, `params`: see `loss`."""
    (student, _), (own, _) = self.pairs(denoise, params)
    return super().losses(student, own, noisy)

  def pairs(self, denoise: Any, params: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The model's and the reference's; None where the objective takes no reference."""
    return (denoise, params) if self.taught else ((denoise, None), (params, None))

  def not_a_likelihood(self) -> str | None:
    return "it weighs completions by what they are worth"


@dataclasses.dataclass(frozen=True)
class PolicyGradient(OfCompletions):
  """Policy gradients for diffusion models: completions of high advantage become more likely.

  A completion's share of the loss is -w min(r A, clip(r) A) and a divergence from other weights: A
  its advantage, r how much likelier it has become since it was written, w by `per`. Sums run over
  the completion's tokens where r is a token's. Rows come from `dlm.rollout`; `Batch.extra` holds
  "advantage_B", in the first of several updates on the same rows what "old_BxL" will be, and, for
  `nll`, "right_B".

  Args:
    ratio: "token": r of each token. "row": of the row, its log divided by the answer's slots.
      "none": A times the log-probability itself, as often as rows are learned from.
    clip: r is kept within [1 - low, 1 + high].
    limit: differences of log-probabilities are clamped to +-limit within exponentials; None: not.
    per: w is 1 over "token": all tokens of the batch; "sequence": rows times the row's answer
      slots; "row": rows; "slot": rows times the longest answer's slots; "state": copies of rows
      that have a learned token, times those slots. "length": the row's tokens over all tokens.
    kl: d = log p - log p of the anchor gives "k1" d; "k1_score" d, with the gradient of its mean;
      "k2" d^2 / 2; "k3" exp(-d) - 1 + d. Of the row where r is the row's.
    anchor: "reference", the model of `teacher` or what the run started from; "old", what wrote.
    kl_weight, kl_per: of that part.
    nll: weight of the negative log-likelihood, by token, of what was right.
    critic: "advantage_B" is what the answer got; a token's advantage is that less what was foretold
      (TraceRL's value model). None: all of an answer's tokens have its advantage.
  """

  ratio: str = "token"
  clip: tuple[float, float] = (0.2, 0.2)
  limit: float | None = None
  per: str = "token"
  kl: str = "none"
  anchor: str = "reference"
  kl_weight: float = 0.0
  kl_per: str = "token"
  nll: float = 0.0
  critic: Critic | None = None

  def __post_init__(self):
    super().__post_init__()
    for name, known in (
      ("ratio", RATIOS), ("per", PER), ("kl", KINDS), ("anchor", ANCHORS), ("kl_per", PER)
    ):  # fmt: skip
      if getattr(self, name) not in known:
        raise ValueError(
          f"PolicyGradient: {name}={getattr(self, name)!r} is not one of {', '.join(known)}"
        )
    if not (0 <= self.clip[0] <= 1 and self.clip[1] >= 0):
      raise ValueError(f"PolicyGradient: clip={self.clip} must hold 0 <= low <= 1, 0 <= high")
    if self.limit is not None and not self.limit > 0:
      raise ValueError(f"PolicyGradient: limit={self.limit} must be positive (None: no limit)")
    for name in ("kl_weight", "nll"):
      if getattr(self, name) < 0:
        raise ValueError(f"PolicyGradient: {name}={getattr(self, name)} must not be negative")
    if (self.kl == "none") != (self.kl_weight == 0):
      raise ValueError(f"PolicyGradient: kl={self.kl!r} does not go with {self.kl_weight=}")
    if self.critic is not None and not (
      self.ratio == "token" and isinstance(self.estimator, Trace)
    ):
      raise ValueError(
        "PolicyGradient: a critic foretells states of an answer: ratio='token', estimator 'trace'; "
        f"ratio={self.ratio!r}, {self.estimator}"
      )
    if self.ratio == "none" and self.kl != "none":
      raise ValueError(f"PolicyGradient: kl={self.kl!r} needs a ratio, not ratio='none'")

  def init(self, width: int) -> Params:
    return {} if self.critic is None else self.critic.init(width)

  @property
  def recalls(self) -> bool:
    return self.ratio != "none"

  def remembered(self, denoise: Any, params: Any, noisy: Noisy) -> dict[str, Array]:
    """The estimate, and values, as the loss takes them."""
    (student, _), (own, _) = self.pairs(denoise, params)
    new_BxL, value_BxL, _ = self._told(student, own, noisy)
    return {"old_BxL": new_BxL} | ({} if self.critic is None else {"old_value_BxL": value_BxL})

  @property
  def taught(self) -> bool:
    return self.kl != "none" and self.anchor == "reference"

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """`extra` holds what the loss is made of, the weights those of the whole batch."""
    del step
    noisy = self.copies(draws, batch)
    scored_BxL = by_row(noisy.weight_BxL > 0, self.estimator.forwards).any(1)
    learned_BxL, answer_BxL = streams.noisable(batch) | scored_BxL, answer(batch)
    extra = {
      "learned_BxL": learned_BxL,
      "slots_B": answer_BxL.sum(-1),
      "weight_B": _weights(self.per, learned_BxL, answer_BxL, noisy),
      "kl_weight_B": _weights(self.kl_per, learned_BxL, answer_BxL, noisy),
      "token_weight_B": _weights("token", learned_BxL, answer_BxL, noisy),
    }
    recalled = ("old_BxL", "old_value_BxL")
    extra |= {name: batch.extra[name] for name in recalled if name in batch.extra}
    if self.critic is not None:
      extra["when_BxL"] = self.estimator.steps(batch)
    if self.nll:
      right_B = batch.extra["right_B"].astype(jnp.float32)
      extra["nll_weight_B"] = right_B / jnp.maximum((right_B * learned_BxL.sum(-1)).sum(), 1)
    return noisy.replace(extra=noisy.extra | extra)

  def loss(self, denoise: Any, params: Any, noisy: Noisy) -> tuple[LossSum, Aux]:
    """Sums over the batch. `denoise`, `params`: pairs, the reference's second, where it has one."""
    (student, teacher), (own, frozen) = self.pairs(denoise, params)
    new_BxL, value_BxL, aux = self._told(student, own, noisy)
    before_BxL = jax.lax.stop_gradient(new_BxL)
    old_BxL = noisy.extra.get("old_BxL", before_BxL)
    anchor_BxL = old_BxL
    if self.taught:
      anchor_BxL = jax.lax.stop_gradient(self.estimate(teacher, frozen, noisy)[0])
    if self.critic is None:
      return self.sums(new_BxL, old_BxL, anchor_BxL, noisy), aux
    return self._judged(value_BxL, new_BxL, old_BxL, anchor_BxL, noisy), aux

  def _told(
    self, denoise: Denoiser, params: Params, noisy: Noisy
  ) -> tuple[Array, Array | None, Aux]:
    """The estimate by token, and the critic's values, from one forward."""
    head, aux = predict(denoise, params, noisy)
    value_BxL = None
    if self.critic is not None:
      value_BxL = self.estimator.tokens(self.critic.values(head, params), noisy)
    return self.of_head(head, noisy), value_BxL, aux

  def _judged(
    self, value_BxL: Array, new_BxL: Array, old_BxL: Array, anchor_BxL: Array, noisy: Noisy
  ) -> LossSum:
    """`sums` by the critic's advantages, and what its values cost. Metrics besides: "value_error",
    and "value", their mean."""
    critic, extra = self.critic, noisy.extra
    before_BxL = extra.get("old_value_BxL", jax.lax.stop_gradient(value_BxL))
    learned_BxL, when_BxL = extra["learned_BxL"], extra["when_BxL"]
    reward_BxL = critic.outcome(extra["advantage_B"], when_BxL, learned_BxL)
    return_BxL, advantage_BxL = critic.returns(reward_BxL, before_BxL, when_BxL, learned_BxL)
    noisy = noisy.replace(extra=extra | {"advantage_BxL": advantage_BxL})
    sums = self.sums(new_BxL, old_BxL, anchor_BxL, noisy)
    weight_BxL = jnp.where(learned_BxL, extra["token_weight_B"][:, None], 0)
    error = (weight_BxL * critic.errors(value_BxL, before_BxL, return_BxL)).sum()
    told = {"value_error": error, "value": (weight_BxL * before_BxL).sum()}
    return sums.replace(total=sums.total + critic.weight * error, metrics=sums.metrics | told)

  def sums(self, new_BxL: Array, old_BxL: Array, anchor_BxL: Array, noisy: Noisy) -> LossSum:
    """The loss of log-probabilities by token: of the model, of what wrote the rows, of the anchor.

    Metrics: "policy", "kl" and "nll" before they are weighed against each other; of the ratios the
    mean, "ratio", the share "outside" of `clip`, and "clipped", the share that for that reason pass
    no gradient.
    """
    extra = noisy.extra
    advantage_Bx1 = extra["advantage_B"][:, None]
    advantage_BxU = extra.get("advantage_BxL", advantage_Bx1)
    learned_BxL, size_Bx1 = extra["learned_BxL"], jnp.ones_like(advantage_Bx1)
    by_token_Bx1 = extra["token_weight_B"][:, None]
    values = new_BxL, old_BxL, anchor_BxL
    if self.ratio != "token":
      values = tuple(x_BxL.sum(-1, keepdims=True) for x_BxL in values)
      learned_BxL = jnp.ones_like(advantage_Bx1, bool)
      size_Bx1 = jnp.maximum(extra["slots_B"], 1)[:, None]
      by_token_Bx1 = jnp.full_like(advantage_Bx1, 1 / len(advantage_Bx1))
    new_BxU, old_BxU, anchor_BxU = values  # U: tokens, or the row alone

    def mean(x_BxU: Array, weight_Bx1: Array) -> Array:
      return (weight_Bx1 * jnp.where(learned_BxL, x_BxU, 0)).sum()

    if self.ratio == "none":
      policy = -mean(advantage_Bx1 * new_BxU, extra["weight_B"][:, None])
      metrics = {"policy": policy}
    else:
      change_BxU = jnp.where(learned_BxL, new_BxU - old_BxU, 0) / size_Bx1
      ratio_BxU = jnp.exp(self._limited(change_BxU))
      low, high = self.clip
      gain_BxU = ratio_BxU * advantage_BxU
      clipped_BxU = jnp.clip(ratio_BxU, 1 - low, 1 + high) * advantage_BxU
      outside_BxU = (ratio_BxU < 1 - low) | (ratio_BxU > 1 + high)
      dead_BxU = outside_BxU & (clipped_BxU < gain_BxU)
      gain_BxU = jnp.where(dead_BxU, jax.lax.stop_gradient(clipped_BxU), gain_BxU)
      policy = -mean(gain_BxU, extra["weight_B"][:, None])
      metrics = {
        "policy": policy,
        "ratio": mean(ratio_BxU, by_token_Bx1),
        "outside": mean(outside_BxU, by_token_Bx1),
        "clipped": mean(dead_BxU, by_token_Bx1),
      }
    total = policy
    if self.kl != "none":
      gap_BxU = jnp.where(learned_BxL, new_BxU - anchor_BxU, 0)
      metrics["kl"] = mean(self.divergence(gap_BxU), extra["kl_weight_B"][:, None])
      total += self.kl_weight * metrics["kl"]
    if self.nll:
      metrics["nll"] = -(extra["nll_weight_B"][:, None] * new_BxL).sum()
      total += self.nll * metrics["nll"]
    return LossSum(total=total, count=noisy.count_B.sum(), metrics=metrics)

  def divergence(self, gap: Array) -> Array:
    """Estimates of the KL divergence by log p - log p of the anchor."""
    if self.kl == "k2":
      return gap**2 / 2
    if self.kl == "k3":
      return jnp.exp(self._limited(-gap)) - 1 + gap
    score = 0.0
    if self.kl == "k1_score":
      fixed = jax.lax.stop_gradient(gap)
      score = fixed * (gap - fixed)
    return gap + score

  def _limited(self, x: Array) -> Array:
    return x if self.limit is None else jnp.clip(x, -self.limit, self.limit)


def _weights(per: str, learned_BxL: Array, answer_BxL: Array, noisy: Noisy) -> Array:
  """Of each row, [B], over the whole batch: see `PolicyGradient`."""
  rows = len(learned_BxL)
  tokens_B, slots_B = learned_BxL.sum(-1), jnp.maximum(answer_BxL.sum(-1), 1)
  if per == "token":
    return jnp.full(rows, 1.0) / jnp.maximum(tokens_B.sum(), 1)
  if per == "sequence":
    return 1 / (rows * slots_B)
  if per == "length":
    return tokens_B / jnp.maximum(tokens_B.sum(), 1)
  if per == "row":
    return jnp.full(rows, 1 / rows)
  states = rows if per == "slot" else jnp.maximum((noisy.weight_BxL > 0).any(-1).sum(), 1)
  return jnp.full(rows, 1.0) / (states * slots_B.max())
