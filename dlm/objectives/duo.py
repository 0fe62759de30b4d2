"""Duo: uniform-state diffusion, at first taught by Gaussian diffusion. arXiv 2506.10892."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dlm.diffusion import uniform
from dlm.diffusion.schedules import LOG_LINEAR, MaskSchedule
from dlm.objectives import streams
from dlm.objectives.cross_entropy import logits, predict
from dlm.objectives.row import RowTraining
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class Duo(RowTraining):
  """Duo (2506.10892): noise is random ids, and the loss of all tokens bounds the likelihood.

  Nothing tells the model which tokens are noise but how much there is of it. The mask id gets no
  probability and is never seen. Forms [B, L, V] logits.

  In the curriculum, its first updates, ids are the argmax of Gaussian noise about the clean ones,
  and the model reads the softmax of the same numbers over a small temperature: a mixture of
  embeddings that says more than the id. It forms [B, L, V] noise too.

  Args:
    vocab: random ids are below it.
    times: the authors' "antithetic" is "stratified".
    schedule: noise schedule; theirs are "log_linear" and "duo_cosine".
    min_time: times are drawn from [min_time, 1].
    curriculum: updates of the curriculum; 0: none. Evaluation is as after it.
    tau: temperature of that softmax, at the first of them and at the last, falling by powers.
    gamma: in it the log of noise over signal runs from the one to the other over time; the
      authors' depends on the vocabulary (this is that of 50257 ids).
    keep_first: the row's first token stays clean; it is scored all the same (`ignore_bos`).
  """

  times: str = "stratified"
  vocab: int = dataclasses.field(kw_only=True)
  schedule: MaskSchedule = LOG_LINEAR
  min_time: float = 1e-3
  curriculum: int = 0
  tau: tuple[float, float] = (1e-3, 1e-3)
  gamma: tuple[float, float] = (-3.55, -1.85)
  keep_first: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 3:
      raise ValueError(f"Duo: vocab={self.vocab} must be at least 3")
    if not 0 < self.min_time < 1:
      raise ValueError(f"Duo: min_time={self.min_time} must lie in (0, 1)")
    if self.curriculum < 0:
      raise ValueError(f"Duo: curriculum={self.curriculum} must not be negative (0: none)")
    if not (self.tau[0] >= self.tau[1] > 0):
      raise ValueError(f"Duo: tau={self.tau} must be positive and not rise")
    if not self.gamma[0] < self.gamma[1]:
      raise ValueError(f"Duo: gamma={self.gamma} must rise")

  @property
  def states(self) -> int:
    return uniform.states(self.vocab, self.mask_id)

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "random" [B, L], the ids that noise puts; for a curriculum "normal" [B, L, V]."""
    key_noise, key_ids, key_normal = jax.random.split(key, 3)
    shape = batch.tokens_BxL.shape
    drawn = {"random": uniform.random_ids(key_ids, shape, self.vocab, self.mask_id)}
    if self.curriculum:
      drawn["normal"] = jax.random.normal(key_normal, (*shape, self.vocab))
    return super().draw(key_noise, batch) | drawn

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Adds to `extra`: "alpha_BxL", and for a curriculum "mix_BxLxV", what the model reads."""
    t_B = (1 - self.min_time) * self.times_of(draws) + self.min_time
    alpha_B, slope_B = self.schedule.alpha(t_B), self.schedule.dalpha(t_B)
    noisable_BxL = streams.noisable(batch)
    noised_BxL = noisable_BxL
    if self.keep_first:
      noised_BxL &= (jnp.arange(noisable_BxL.shape[1]) > 0)[None]
    moved_BxL = noised_BxL & (draws["u_mask"] < 1 - alpha_B[:, None])
    inputs_BxL = jnp.where(moved_BxL, draws["random"], batch.tokens_BxL)
    extra = {}
    if self.curriculum:
      early = step < self.curriculum
      soft = self._gaussian(draws["normal"], batch.tokens_BxL, t_B, step)
      alpha_B, slope_B = (
        jnp.where(early, *each) for each in zip(soft[:2], (alpha_B, slope_B), strict=True)
      )
      inputs_BxL = jnp.where(early & noised_BxL, soft[3], inputs_BxL)
      known_BxLxV = jax.nn.one_hot(inputs_BxL, self.vocab)
      extra["mix_BxLxV"] = jnp.where((early & noised_BxL)[..., None], soft[2], known_BxLxV)
    level_BxL = jnp.broadcast_to(1 - alpha_B[:, None], inputs_BxL.shape)
    noisy = streams.one_stream(
      batch,
      masked_BxL=noisable_BxL,
      weight_BxL=(-slope_B / (self.states * alpha_B))[:, None],
      level_BxL=level_BxL,
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    extra["alpha_BxL"] = jnp.broadcast_to(alpha_B[:, None], inputs_BxL.shape)
    return noisy.replace(inputs_BxW=inputs_BxL, extra=extra)

  def _gaussian(
    self, normal_BxLxV: Array, tokens_BxL: Array, t_B: Array, step: Array
  ) -> tuple[Array, Array, Array, Array]:
    """Of the curriculum: alpha and its slope in t [B], the mixture [B, L, V], its argmax [B, L]."""
    lo, hi = self.gamma
    gamma_B = lo + t_B * (hi - lo)
    alpha_B, slope_B = uniform.argmax_survival(gamma_B, self.states)
    ids_BxL, z_BxLxV = uniform.gaussian(normal_BxLxV, tokens_BxL, gamma_B, self.mask_id)
    first, last = map(math.log, self.tau)
    tau = jnp.exp(first + (last - first) * jnp.minimum(step / self.curriculum, 1))
    mix_BxLxV = jax.nn.softmax(z_BxLxV / tau)
    return alpha_B, (hi - lo) * slope_B, mix_BxLxV, ids_BxL

  def losses(self, denoise: Denoiser, params: Params, noisy: Noisy) -> tuple[Array, Array, Aux]:
    """The bound, and the cross-entropy of all noisable tokens."""
    soft_BxLxD = None
    if self.curriculum:
      embed_VxD = denoise.embedding(params)[: self.vocab]
      mixed_BxLxD = jnp.einsum("blv,vd->bld", noisy.extra["mix_BxLxV"], embed_VxD)
      soft_BxLxD = mixed_BxLxD - embed_VxD[noisy.inputs_BxW]
    head, aux = predict(denoise, params, noisy, soft_BxLxD)
    is_mask_V = (jnp.arange(self.vocab) == self.mask_id)[None, None]
    logits_BxLxV = logits(head)[..., : self.vocab]
    logp_BxLxV = jax.nn.log_softmax(jnp.where(is_mask_V, -jnp.inf, logits_BxLxV))
    asked_BxL = noisy.weight_BxL > 0
    target_BxLx1 = noisy.targets_BxL[..., None]
    ce_BxL = -jnp.take_along_axis(logp_BxLxV, target_BxLx1, axis=-1)[..., 0]
    bound_BxL = noisy.weight_BxL * self._divergence(logp_BxLxV, is_mask_V, noisy)
    return jnp.where(asked_BxL, bound_BxL, 0), jnp.where(asked_BxL, ce_BxL, 0), aux

  def _divergence(self, logp_BxLxV: Array, is_mask_V: Array, noisy: Noisy) -> Array:
    """[B, L]: the rate of the KL between the true reverse process and the model's, unweighted.

    With x(v) = n alpha p(v) + 1 - alpha, the likelihood of standing at v; that of the true process,
    where p is certain, takes two values, whose ratio is r.
    """
    n, alpha_BxL = self.states, noisy.extra["alpha_BxL"]
    here_BxL = noisy.targets_BxL == noisy.inputs_BxW  # the noise left it as it was
    x_BxLxV = n * alpha_BxL[..., None] * jnp.exp(logp_BxLxV) + 1 - alpha_BxL[..., None]

    def at(ids_BxL: Array) -> Array:
      return jnp.take_along_axis(x_BxLxV, ids_BxL[..., None], axis=-1)[..., 0]

    x_input_BxL, log_input_BxL = at(noisy.inputs_BxW), jnp.log(at(noisy.inputs_BxW))
    log_target_BxL = jnp.log(at(noisy.targets_BxL))
    true_BxL = 1 - alpha_BxL + jnp.where(here_BxL, n * alpha_BxL, 0)
    r_BxL = (1 - alpha_BxL) / (n * alpha_BxL + 1 - alpha_BxL)
    sum_BxL = jnp.where(is_mask_V, 0, jnp.log(x_BxLxV)).sum(-1) - n * log_input_BxL
    gap_BxL = n * alpha_BxL / (1 - alpha_BxL) * (log_target_BxL - log_input_BxL)
    offset_BxL = jnp.where(here_BxL, (n - 1) * r_BxL, -1 / r_BxL) * jnp.log(r_BxL)
    entropy_BxL = offset_BxL - jnp.where(here_BxL, r_BxL * sum_BxL, sum_BxL + gap_BxL)
    return entropy_BxL - n * (1 / true_BxL - 1 / x_input_BxL)

  def not_a_likelihood(self) -> str | None:
    return None if self.schedule.bound else f"{self.schedule} bounds nothing"
