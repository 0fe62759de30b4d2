"""Duo's discrete consistency distillation: fewer, larger steps. arXiv 2506.10892; its code."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import uniform
from dlm.objectives import streams
from dlm.objectives.cross_entropy import predict
from dlm.objectives.divergence import kl
from dlm.objectives.row import RowTraining
from dlm.types import Array, Aux, Batch, Denoiser, Noisy, Params


@dataclasses.dataclass(frozen=True)
class DuoDcd(RowTraining):
  """Duo's DCD (2506.10892, 4): say at time t what the teacher says a step nearer to the text.

  Both read ids that are the argmax of one Gaussian path, at t and at t - `dt`, and are told how
  noisy they are. The loss of all noisable tokens is the divergence of their two distributions.
  The noise is [B, L, V]. The mask id gets no probability.

  A run is a round: the teacher is the model that it starts from, and `dt` doubles from one round to
  the next, from 1 / 512. `growth` has `dt` grow linearly instead over so many updates. The bare
  "cross-entropy" of the metrics is the divergence.

  Args:
    vocab: random ids are below it.
    times: the authors' "antithetic" is "stratified".
    growth: the first `dt`, the last, and the updates between them; None: `dt` stays.
    gamma: as of "duo".
    min_time: times are drawn from [min_time, 1]; `dt` is then added, up to 1.
    reverse: KL(student || teacher), their kl-bwd; False: KL(teacher || student).
  """

  times: str = "stratified"
  vocab: int = dataclasses.field(kw_only=True)
  dt: float = 1 / 512
  growth: tuple[float, float, int] | None = None
  gamma: tuple[float, float] = (-4.0, -1.0)
  min_time: float = 1e-3
  reverse: bool = True
  taught = True
  teacher_shift = 0

  def __post_init__(self):
    super().__post_init__()
    if self.vocab < 3:
      raise ValueError(f"DuoDcd: vocab={self.vocab} must be at least 3")
    if not 0 < self.min_time < 1:
      raise ValueError(f"DuoDcd: min_time={self.min_time} must lie in (0, 1)")
    if not 0 < self.dt <= 1:
      raise ValueError(f"DuoDcd: dt={self.dt} must lie in (0, 1]")
    first, last, updates = self.growth or (self.dt, self.dt, 1)
    if not 0 < first <= last <= 1 or updates < 1:
      raise ValueError(f"DuoDcd: growth={self.growth} must rise within (0, 1], in some updates")
    if not self.gamma[0] < self.gamma[1]:
      raise ValueError(f"DuoDcd: gamma={self.gamma} must rise")

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "normal" [B, L, V], the one noise of both ends of a step."""
    key_time, key_normal = jax.random.split(key)
    shape = (*batch.tokens_BxL.shape, self.vocab)
    return super().draw(key_time, batch) | {"normal": jax.random.normal(key_normal, shape)}

  def step_at(self, step: Array) -> Array:
    """`dt` of an update."""
    if self.growth is None:
      return jnp.float32(self.dt)
    first, last, updates = self.growth
    return first + (last - first) * jnp.minimum(step / updates, 1)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Adds to `extra` what the teacher reads: "nearer_BxL", "nearer_time_BxL"."""
    dt = self.step_at(step)
    t_B = jnp.clip((1 - self.min_time) * self.times_of(draws) + self.min_time + dt, 0, 1)
    noisable_BxL = streams.noisable(batch)
    ids_BxL, level_BxL = self._noised(draws["normal"], batch, noisable_BxL, t_B)
    nearer_BxL, nearer_level_BxL = self._noised(draws["normal"], batch, noisable_BxL, t_B - dt)
    noisy = streams.one_stream(
      batch,
      masked_BxL=noisable_BxL,
      weight_BxL=jnp.ones_like(level_BxL),
      level_BxL=level_BxL,
      count_B=noisable_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    extra = {"nearer_BxL": nearer_BxL, "nearer_time_BxL": nearer_level_BxL}
    return noisy.replace(inputs_BxW=ids_BxL, extra=extra)

  def _noised(
    self, normal_BxLxV: Array, batch: Batch, noisable_BxL: Array, t_B: Array
  ) -> tuple[Array, Array]:
    """Ids and noise levels [B, L] at time t."""
    lo, hi = self.gamma
    gamma_B = lo + t_B * (hi - lo)
    alpha_B, _ = uniform.argmax_survival(gamma_B, uniform.states(self.vocab, self.mask_id))
    ids_BxL, _ = uniform.gaussian(normal_BxLxV, batch.tokens_BxL, gamma_B, self.mask_id)
    level_BxL = jnp.broadcast_to(1 - alpha_B[:, None], ids_BxL.shape)
    return jnp.where(noisable_BxL, ids_BxL, batch.tokens_BxL), level_BxL

  def losses(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[Array, Array, Aux]:
    """Divergences [B, L], twice. `denoise`, `params`: the student's, the teacher's."""
    (student, teacher), (own, frozen) = denoise, params
    head, aux = predict(student, own, noisy)
    nearer = noisy.replace(
      inputs_BxW=noisy.extra["nearer_BxL"], time_BxW=noisy.extra["nearer_time_BxL"]
    )
    taught = jax.lax.stop_gradient(predict(teacher, frozen, nearer)[0])

    ids = range(head.unembed_VxD.shape[0])
    nats_BxL = kl(
      head,
      taught,
      noisy.weight_BxL > 0,
      reverse=float(self.reverse),
      forbidden=tuple(i for i in ids if i == self.mask_id or i >= self.vocab),
    )
    return nats_BxL, nats_BxL, aux

  def not_a_likelihood(self) -> str | None:
    return "it is the distance from a teacher"
