"""SDTT: one step is to say what several steps of the teacher say. github.com/jdeschena/sdtt."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.objectives import streams
from dlm.objectives.cross_entropy import logits, predict
from dlm.objectives.row import RowTraining
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, Noisy, Params

KINDS = ("kl_reverse", "kl", "mse", "tvd")
EPS = 1e-3  # of tokens that no time masks


@dataclasses.dataclass(frozen=True)
class Sdtt(RowTraining):
  """SDTT (jdeschena/sdtt): say at once of all masks what the teacher says of each as it writes it.

  The teacher goes on from the masked text for `steps` ancestral steps of `dt`. What it predicted of
  a token in the step that wrote it, of one that no step wrote in the last, is the target of the
  student, which sees the text before all these steps. The loss is a mean over masked tokens.

  A run is a round: the teacher is the model that it starts from, and `dt` doubles from one round to
  the next. Forms [B, L, V] logits of both, and `steps` times as much noise. The mask id gets no
  probability. The bare "cross-entropy" of the metrics is the loss.

  Args:
    vocab: ids are below it.
    dt: the authors' first is (1 - 1e-5) / 1024.
    kind: "kl_reverse": KL(student || teacher), their kl-bwd; "kl": KL(teacher || student); "mse",
      "tvd": squared, and absolute, differences of log-probabilities, the mask id's among them.
    released_times: the teacher is told it stands at the times that the authors' code computes,
      t f + (1 - t)(t - steps dt) with f from 1 to 0, where (1 - f) was meant.
    min_time: times are drawn from [min_time, 1].
  """

  times: str = "stratified"
  vocab: int = dataclasses.field(kw_only=True)
  dt: float = 1 / 1024
  steps: int = 2
  kind: str = "kl_reverse"
  released_times: bool = False
  min_time: float = 1e-5
  taught = True
  teacher_shift = 0

  def __post_init__(self):
    super().__post_init__()
    if self.vocab <= self.mask_id:
      raise ValueError(f"Sdtt: vocab={self.vocab} must be above mask_id={self.mask_id}")
    if not 0 < self.dt <= 1:
      raise ValueError(f"Sdtt: dt={self.dt} must lie in (0, 1]")
    if self.steps < 1:
      raise ValueError(f"Sdtt: steps={self.steps} must be at least 1")
    if self.kind not in KINDS:
      raise ValueError(f"Sdtt: kind={self.kind!r} is not one of {', '.join(KINDS)}")
    if not 0 < self.min_time < 1:
      raise ValueError(f"Sdtt: min_time={self.min_time} must lie in (0, 1)")

  @property
  def forbidden(self) -> tuple[int, ...]:
    return (self.mask_id,)

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Adds "u_step" [B, steps, L, V], by which the teacher's tokens are drawn."""
    key_row, key_step = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    shape = (rows, self.steps, length, self.vocab)
    return super().draw(key_row, batch) | {"u_step": jax.random.uniform(key_step, shape)}

  def times_from(self, t_B: Array) -> Array:
    """Where the teacher stands before each of its steps, [B, steps]."""
    share_S = 1 - jnp.arange(self.steps) / max(self.steps - 1, 1)
    t_Bx1 = t_B[:, None]
    rest = 1 - t_Bx1 if self.released_times else 1 - share_S[None]
    return jnp.maximum(t_Bx1 * share_S[None] + rest * (t_Bx1 - self.steps * self.dt), self.min_time)

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Adds to `extra` the teacher's "times_BxS" and draws, "u_BxSxLxV"."""
    del step
    t_B = (1 - self.min_time) * self.times_of(draws) + self.min_time
    level_B = (1 - EPS) * t_B
    noisy = streams.noisy_rows(
      batch, draws["u_mask"], level_B, jnp.ones_like(level_B), self.mask_id
    )
    return noisy.replace(
      count_B=(noisy.weight_BxL > 0).sum(-1).astype(jnp.float32),
      extra={"times_BxS": self.times_from(t_B), "u_BxSxLxV": draws["u_step"]},
    )

  def losses(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[Array, Array, Aux]:
    """Divergences [B, L], twice. `denoise`, `params`: the student's, the teacher's."""
    (student, teacher), (own, frozen) = denoise, params
    head, aux = predict(student, own, noisy)
    p_BxLxV, p_mask_BxL = self._logp(head)
    q_BxLxV, q_mask_BxL = jax.lax.stop_gradient(self.taught_by(teacher, frozen, noisy))
    gap_BxLxV = p_BxLxV - q_BxLxV
    match self.kind:
      case "kl_reverse":
        nats_BxL = (jnp.exp(p_BxLxV) * gap_BxLxV).sum(-1)
      case "kl":
        nats_BxL = -(jnp.exp(q_BxLxV) * gap_BxLxV).sum(-1)
      case "mse":
        nats_BxL = ((gap_BxLxV**2).sum(-1) + (p_mask_BxL - q_mask_BxL) ** 2) / self.vocab
      case "tvd":
        nats_BxL = jnp.abs(gap_BxLxV).sum(-1) + jnp.abs(p_mask_BxL - q_mask_BxL)
    nats_BxL = jnp.where(noisy.weight_BxL > 0, nats_BxL, 0)
    return nats_BxL, nats_BxL, aux

  def _logp(self, head: LogitHead) -> tuple[Array, Array]:
    """Log-probabilities [B, L, V] without the mask id's, and the mask id's [B, L] up to a constant.

    The authors lower the mask id's logit by 1e6, which differences of log-probabilities keep.
    """
    logits_BxLxV = logits(head)[..., : self.vocab]
    is_mask_V = jnp.arange(self.vocab) == self.mask_id
    others_BxLxV = jnp.where(is_mask_V[None, None], -1e30, logits_BxLxV)
    total_BxL = jax.nn.logsumexp(others_BxLxV, axis=-1)
    logp_BxLxV = jnp.where(is_mask_V[None, None], -1e30, others_BxLxV - total_BxL[..., None])
    return logp_BxLxV, logits_BxLxV[..., self.mask_id] - total_BxL

  def taught_by(self, teacher: Denoiser, frozen: Params, noisy: Noisy) -> tuple[Array, Array]:
    """The teacher's `_logp` of each token in the step that wrote it."""
    ids_BxL, asked_BxL = noisy.inputs_BxW, noisy.weight_BxL > 0
    is_mask_V = jnp.arange(self.vocab) == self.mask_id
    taught_BxLxV, taught_mask_BxL = jnp.float32(0), jnp.float32(0)
    for i in range(self.steps):
      time_Bx1 = noisy.extra["times_BxS"][:, i, None]
      level_BxL = jnp.broadcast_to((1 - EPS) * time_Bx1, ids_BxL.shape)
      now = noisy.replace(inputs_BxW=ids_BxL, time_BxW=level_BxL)
      logp_BxLxV, logp_mask_BxL = self._logp(predict(teacher, frozen, now)[0])
      hidden_BxL = asked_BxL & (ids_BxL == self.mask_id)
      # Of what this step does not write, the next one says better.
      taught_BxLxV = jnp.where(hidden_BxL[..., None], logp_BxLxV, taught_BxLxV)
      taught_mask_BxL = jnp.where(hidden_BxL, logp_mask_BxL, taught_mask_BxL)
      stay_Bx1x1 = (time_Bx1 - self.dt)[..., None]  # negative near 0: then no mask stays
      weight_BxLxV = jnp.where(is_mask_V[None, None], stay_Bx1x1, jnp.exp(logp_BxLxV) * self.dt)
      u_BxLxV = noisy.extra["u_BxSxLxV"][:, i]
      drawn_BxL = jnp.argmax(weight_BxLxV / (1e-10 - jnp.log(u_BxLxV + 1e-10)), axis=-1)
      ids_BxL = jnp.where(hidden_BxL, drawn_BxL.astype(ids_BxL.dtype), ids_BxL)
    return taught_BxLxV, taught_mask_BxL

  def not_a_likelihood(self) -> str | None:
    return "it is the distance from a teacher"
