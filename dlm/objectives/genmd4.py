"""GenMD4: masked diffusion whose schedule is learned, a rate for each id. arXiv 2406.04329, 5."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dlm import masks
from dlm.objectives import streams
from dlm.objectives.cross_entropy import logits, predict
from dlm.objectives.row import RowTraining
from dlm.types import OBJECTIVE, Array, Aux, Batch, Denoiser, LossSum, Noisy, Params


@dataclasses.dataclass(frozen=True)
class GenMd4(RowTraining):
  """GenMD4 (2406.04329): as MD4, and which tokens are masked early is learned, id by id.

  Id v is masked at time t with probability (1 - eps) t^power_v; the powers, softplus of parameters
  beside the model's, have the bound for their loss too. Its gradient through what is masked is
  REINFORCE with a leave-one-out baseline: every row is noised twice at one time, and each view is
  compared with the other.

  Both views are read in one forward, as one row of 2L inputs that do not see each other; `targets`
  holds the text twice, and each counts half. The model is told the time, since tokens of a row
  differ in their level. The mask id gets no probability. Forms [B, 2L, V] logits.

  Args:
    times: the authors' "antithetic" is "shared_offset".
    vocab: ids that have a power; no others are predicted.
    power: of all ids at first; 1 is the linear schedule.
    eps: what is left unmasked at t = 1.
    min_time: times are drawn from [min_time, 1]; what is masked there is guessed by the powers.
  """

  times: str = "shared_offset"
  vocab: int = dataclasses.field(kw_only=True)
  power: float = 1.0
  eps: float = 1e-4
  min_time: float = 1e-3
  exact_count = True

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 2:
      raise ValueError(f"GenMd4: vocab={self.vocab} must be at least 2")
    if not self.power > 0:
      raise ValueError(f"GenMd4: power={self.power} must be positive")
    for name in ("eps", "min_time"):
      if not 0 < getattr(self, name) < 1:
        raise ValueError(f"GenMd4: {name}={getattr(self, name)} must lie in (0, 1)")

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def init(self, width: int) -> Params:
    del width
    return {"power_V": self._first()}

  def _first(self) -> Array:
    return jnp.full(self.vocab, math.log(math.expm1(self.power)))

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "u_mask_again" [B, L], of the second view."""
    key_noise, key_again = jax.random.split(key)
    again = jax.random.uniform(key_again, batch.tokens_BxL.shape)
    return super().draw(key_noise, batch) | {"u_mask_again": again}

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Masks by the powers in `batch.extra`; where there are none, by those of the beginning."""
    del step
    power_V = jax.nn.softplus(batch.extra.get("power_V", self._first()))
    t_Bx1 = (self.min_time + (1 - self.min_time) * self.times_of(draws))[:, None]
    level_BxL = (1 - self.eps) * t_Bx1 ** power_V[batch.tokens_BxL]
    noisable_BxL = streams.noisable(batch)
    views = [
      streams.one_stream(
        batch,
        masked_BxL=(draws[u] < level_BxL) & noisable_BxL,
        weight_BxL=0.5 / t_Bx1,
        level_BxL=jnp.broadcast_to(t_Bx1, level_BxL.shape),
        count_B=noisable_BxL.sum(-1),
        mask_id=self.mask_id,
      )
      for u in ("u_mask", "u_mask_again")
    ]

    def both(name: str) -> Array:
      return jnp.concatenate([getattr(view, name) for view in views], axis=1)

    rows, length = batch.tokens_BxL.shape
    index_BxW = jnp.broadcast_to(jnp.arange(2 * length), (rows, 2 * length))
    own_half = masks.BlockCausal(length, context=length)(index_BxW, 2 * length)
    segment_BxW = jnp.concatenate([batch.segment_BxL, batch.segment_BxL], axis=1)
    return Noisy(
      count_B=views[0].count_B,
      mask=masks.in_segments(own_half, segment_BxW),
      extra={"noisable_BxL": jnp.concatenate([noisable_BxL, noisable_BxL], axis=1)},
      **{
        name: both(name)
        for name in ("inputs_BxW", "targets_BxL", "weight_BxL", "slot_BxW", "time_BxW")
      },
    )

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """[B, 2L] each: of the first view, then of the second. Sums estimate the bound."""
    bound_BxL, ce_BxL, aux = self._bound(denoise, params, noisy)
    score_BxL = self._score(params, noisy, bound_BxL)
    # Only its gradient counts: by value it is noise upon the bound.
    return bound_BxL + score_BxL - jax.lax.stop_gradient(score_BxL), ce_BxL, aux

  def score_term(self, denoise: Denoiser, params: Params, noisy: Noisy) -> Array:
    """[B, 2L]: what REINFORCE adds to the loss for its gradient."""
    return self._score(params, noisy, self._bound(denoise, params, noisy)[0])

  def loss(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[LossSum, Aux]:
    """With the powers among the metrics: "power_min", "power_mean", "power_max"."""
    sums, aux = super().loss(denoise, params, noisy)
    power_V = self._power(params)
    told = {"min": power_V.min(), "mean": power_V.mean(), "max": power_V.max()}
    metrics = {f"power_{name}": value * sums.count for name, value in told.items()}
    return sums.replace(metrics=sums.metrics | metrics), aux

  def _power(self, params: Params) -> Array:
    return jax.nn.softplus(params[OBJECTIVE]["power_V"])

  def _bound(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """The bound of each view, a half of it, and the bare cross-entropy."""
    head, aux = predict(denoise, params, noisy)
    power_V, asked_BxL = self._power(params), noisy.weight_BxL > 0
    is_mask_V = jnp.arange(self.vocab) == self.mask_id
    logits_BxLxV = logits(head)[..., : self.vocab]
    logp_BxLxV = jax.nn.log_softmax(jnp.where(is_mask_V[None, None], -jnp.inf, logits_BxLxV))
    target_BxLx1 = noisy.targets_BxL[..., None]
    ce_BxL = -jnp.take_along_axis(logp_BxLxV, target_BxLx1, axis=-1)[..., 0]
    ce_BxL = jnp.where(asked_BxL, ce_BxL, 0)
    power_BxL = power_V[noisy.targets_BxL]
    expected_BxL = (jnp.exp(logp_BxLxV) * power_V[None, None]).sum(-1)
    bound_BxL = noisy.weight_BxL * (power_BxL * (ce_BxL - 1) + expected_BxL)
    first = math.log(self.min_time)
    total = jax.nn.logsumexp(jnp.where(is_mask_V, -jnp.inf, power_V * first))
    guess_BxL = (1 - self.eps) * jnp.exp(power_BxL * first) * (total - power_BxL * first)
    return bound_BxL + 0.5 * guess_BxL * noisy.extra["noisable_BxL"], ce_BxL, aux

  def _score(self, params: Params, noisy: Noisy, bound_BxL: Array) -> Array:
    """0.5 (l1 - l2) (log q1 - log q2), token by token: l a view's bound, q what its masks had."""
    rows = bound_BxL.shape[0]
    view_Bx2 = 2 * bound_BxL.reshape(rows, 2, -1).sum(-1)
    ahead_B = jax.lax.stop_gradient(view_Bx2[:, 0] - view_Bx2[:, 1])
    sign_BxL = jnp.where(jnp.arange(bound_BxL.shape[1])[None] < bound_BxL.shape[1] // 2, 0.5, -0.5)
    power_BxL, t_BxL = self._power(params)[noisy.targets_BxL], noisy.time_BxW
    masked_BxL = math.log(1 - self.eps) + power_BxL * jnp.log(t_BxL)
    kept_BxL = jnp.log1p(-(1 - self.eps) * t_BxL**power_BxL)
    log_q_BxL = jnp.where(noisy.weight_BxL > 0, masked_BxL, kept_BxL)
    return ahead_B[:, None] * sign_BxL * log_q_BxL * noisy.extra["noisable_BxL"]

  def not_a_likelihood(self) -> str | None:
    return None
