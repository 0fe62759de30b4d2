"""TraceRL's value model: what an answer will be worth, foretold at each state. arXiv 2509.06949."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.types import OBJECTIVE, Array, LogitHead, Params


@dataclasses.dataclass(frozen=True)
class Critic:
  """TraceRL (2509.06949): a value of each written token, learned beside the policy.

  Tokens of one forward are a step: its reward and value are their means, and a token is worth what
  it got more than foretold, with the steps behind it discounted (generalised advantage estimation).
  The answer's reward falls due at its last step. The authors' value model is a second network as
  large as the first; here it is a linear head on what the policy's layers put out, without gradient
  to them: it costs no forward, and leaves the policy's gradient as it is.

  Args:
    gamma: discount of a step.
    lam: of the steps behind the next one; 1: advantages are the return less the value.
    clip: a value moves from the one before the first of several updates by so much at most before
      it stops to learn; as the authors do it, the larger of both losses counts.
    weight: of the values' mean squared error in the loss.
  """

  gamma: float = 1.0
  lam: float = 1.0
  clip: float = 0.2
  weight: float = 1.0

  def __post_init__(self):
    for name in ("gamma", "lam"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"Critic: {name}={getattr(self, name)} must lie in [0, 1]")
    for name in ("clip", "weight"):
      if not getattr(self, name) > 0:
        raise ValueError(f"Critic: {name}={getattr(self, name)} must be positive")

  def init(self, width: int) -> Params:
    """Foretells 0."""
    return {"value_D": jnp.zeros(width), "value": jnp.zeros(())}

  def values(self, head: LogitHead, params: Params) -> Array:
    """Float32 of every asked input, of the head's rows."""
    hidden_BxAxD = jax.lax.stop_gradient(head.hidden_BxAxD).astype(jnp.float32)
    own = params[OBJECTIVE]
    return hidden_BxAxD @ own["value_D"] + own["value"]

  def outcome(self, reward_B: Array, when_BxL: Array, learned_BxL: Array) -> Array:
    """Rewards of tokens, [B, L]: the answer's, at all that its last step wrote."""
    when_BxL = jnp.where(learned_BxL, when_BxL, -1)
    last_BxL = learned_BxL & (when_BxL == when_BxL.max(-1, keepdims=True))
    return jnp.where(last_BxL, reward_B[:, None], 0.0)

  def returns(
    self, reward_BxL: Array, value_BxL: Array, when_BxL: Array, learned_BxL: Array
  ) -> tuple[Array, Array]:
    """Return and advantage of each learned token, [B, L]; elsewhere 0.

    Args:
      when_BxL: tokens of equal number are a step, in this order.
    """
    rank_BxL = _ranks(when_BxL, learned_BxL)
    rows, length = rank_BxL.shape
    row_Bx1 = jnp.arange(rows)[:, None]

    def mean(x_BxL: Array) -> Array:
      """By step [B, T]; steps that there are none of come last, as 0."""
      zeros_BxT = jnp.zeros((rows, length))
      sum_BxT = zeros_BxT.at[row_Bx1, rank_BxL].add(jnp.where(learned_BxL, x_BxL, 0))
      return sum_BxT / jnp.maximum(zeros_BxT.at[row_Bx1, rank_BxL].add(learned_BxL), 1)

    def back(gain_BxT: Array, factor: float) -> Array:
      """Of each step, its gain and `factor` times what comes of the next."""

      def step(after_B: Array, gain_B: Array) -> tuple[Array, Array]:
        total_B = gain_B + factor * after_B
        return total_B, total_B

      _, total_TxB = jax.lax.scan(step, jnp.zeros(rows), gain_BxT.T, reverse=True)
      return total_TxB.T

    def following(x_BxT: Array) -> Array:
      """Of each token that of the step behind its own."""
      next_BxT = jnp.pad(x_BxT[:, 1:], ((0, 0), (0, 1)))
      return jnp.take_along_axis(next_BxT, rank_BxL, axis=1)

    reward_BxT, value_BxT = mean(reward_BxL), mean(value_BxL)
    gap_BxT = reward_BxT - value_BxT + self.gamma * jnp.pad(value_BxT[:, 1:], ((0, 0), (0, 1)))
    return_BxL = reward_BxL + self.gamma * following(back(reward_BxT, self.gamma))
    advantage_BxL = reward_BxL - value_BxL + self.gamma * following(value_BxT)
    advantage_BxL += self.gamma * self.lam * following(back(gap_BxT, self.gamma * self.lam))
    return jnp.where(learned_BxL, return_BxL, 0), jnp.where(learned_BxL, advantage_BxL, 0)

  def errors(self, value_BxL: Array, old_BxL: Array, return_BxL: Array) -> Array:
    """Squared errors of values, [B, L], the larger of the clipped one and its own."""
    near_BxL = old_BxL + jnp.clip(value_BxL - old_BxL, -self.clip, self.clip)
    return jnp.maximum((value_BxL - return_BxL) ** 2, (near_BxL - return_BxL) ** 2)


def _ranks(when_BxL: Array, learned_BxL: Array) -> Array:
  """How many other numbers of learned tokens are below each one's own, [B, L]."""
  far = jnp.iinfo(jnp.int32).max
  when_BxL = jnp.where(learned_BxL, when_BxL, far)
  order_BxL = jnp.argsort(when_BxL, axis=1)
  sorted_BxL = jnp.take_along_axis(when_BxL, order_BxL, axis=1)
  new_BxL = jnp.diff(sorted_BxL, axis=1, prepend=sorted_BxL[:, :1]) != 0
  rank_BxL = jnp.cumsum(new_BxL, axis=1)
  row_Bx1 = jnp.arange(len(when_BxL))[:, None]
  return jnp.zeros_like(rank_BxL).at[row_Bx1, order_BxL].set(rank_BxL)
