"""CD4LM's distillation: what a model says of a text that is hidden more. arXiv 2601.02236."""

import dataclasses

import jax
import jax.numpy as jnp

from dlm.diffusion import absorbing
from dlm.objectives import streams
from dlm.objectives.cross_entropy import cross_entropy, loss_sum, predict, tempered
from dlm.objectives.divergence import Divergence
from dlm.objectives.objective import Objective
from dlm.types import Array, Aux, Batch, Denoiser, LogitHead, LossSum, Noisy, Params

SEEN = ("teacher", "text")


@dataclasses.dataclass(frozen=True)
class Dscd(Objective):
  """DSCD (CD4LM, 2601.02236): say of a text with many masks what the teacher says of it with few.

  Both read the same answer under nested masks: the student's share is drawn from [0.4, 0.9], the
  teacher's is 0.3 to 0.7 of that. The loss of all that the student does not see, which the teacher
  may see, is w KL(teacher || student) T^2 + (1 - w) cross-entropy, each a mean that is held below
  `most`, of a shard's microbatch; a batch with logits that are not finite costs nothing.

  Args:
    end_id: a masked end token carries no loss.
    temperature: T, of both distributions.
    weights: w at first, and at the end.
    updates: over which w falls along a cosine, after the share `warmup` of them; 0: w stays the
      first.
    most: nats.
    short: of answers of at most so many tokens the student has 2 masks and the teacher 1, as in the
      authors' code; of fewer than the second number the student's share is at most a half.
    seen: of a token that it sees the "teacher" says what its output is, as in the authors' code; a
      model whose loss was of masked tokens alone never learned to repeat one. "text": it is certain
      of that token.
  """

  mask_id: int
  end_id: int
  temperature: float = 2.0
  weights: tuple[float, float] = (0.9, 0.5)
  updates: int = 0
  warmup: float = 0.1
  most: float = 5.0
  short: tuple[int, int] = (10, 20)
  seen: str = "teacher"
  taught = True
  tellable = True
  own_fields = ("weights", "updates", "warmup", "most", "seen")
  teacher_shift = 0
  shiftable = True

  def __post_init__(self):
    streams.check_mask_id("Dscd", self.mask_id)
    if not self.temperature > 0:
      raise ValueError(f"Dscd: temperature={self.temperature} must be positive")
    if not all(0 <= w <= 1 for w in self.weights):
      raise ValueError(f"Dscd: weights={self.weights} must lie in [0, 1]")
    if self.updates < 0:
      raise ValueError(f"Dscd: updates={self.updates} must not be negative")
    if not 0 <= self.warmup < 1:
      raise ValueError(f"Dscd: warmup={self.warmup} must lie in [0, 1)")
    if not self.most > 0:
      raise ValueError(f"Dscd: most={self.most} must be positive")
    if self.seen not in SEEN:
      raise ValueError(f"Dscd: seen={self.seen!r} is not one of {', '.join(SEEN)}")
    if not all(n >= 0 for n in self.short):
      raise ValueError(f"Dscd: short={self.short} must not be negative")

  def weight_at(self, step: Array) -> Array:
    """w of an update."""
    first, last = self.weights
    if not self.updates:
      return jnp.float32(first)
    share = (step / self.updates - self.warmup) / (1 - self.warmup)
    return first + (last - first) * (1 - jnp.cos(jnp.pi * jnp.clip(share, 0, 1))) / 2

  def draw(self, key: Array, batch: Batch) -> dict[str, Array]:
    """Draws "u_share" [B, 2], the student's and the teacher's, and "u_mask" [B, L]."""
    key_share, key_mask = jax.random.split(key)
    rows, length = batch.tokens_BxL.shape
    return {
      "u_share": jax.random.uniform(key_share, (rows, 2)),
      "u_mask": jax.random.uniform(key_mask, (rows, length)),
    }

  def corrupt_with(self, draws: dict[str, Array], batch: Batch, step: Array) -> Noisy:
    """Adds to `extra` what the teacher reads and w: "nearer_BxL", "weight_B"."""
    noisable_BxL = streams.noisable(batch)
    n_B = noisable_BxL.sum(-1)
    many_B, few_B = self.counts(draws["u_share"], n_B)
    masked_BxL = absorbing.lowest(draws["u_mask"], noisable_BxL, many_B)
    nearer_BxL = absorbing.lowest(draws["u_mask"], noisable_BxL, few_B)
    learned_BxL = masked_BxL & (batch.tokens_BxL != self.end_id)
    noisy = streams.one_stream(
      batch,
      masked_BxL,
      weight_BxL=learned_BxL.astype(jnp.float32),
      level_BxL=jnp.broadcast_to((many_B / jnp.maximum(n_B, 1))[:, None], masked_BxL.shape),
      count_B=learned_BxL.sum(-1),
      mask_id=self.mask_id,
    )
    extra = {
      "nearer_BxL": absorbing.mask_out(batch.tokens_BxL, nearer_BxL, self.mask_id),
      "nearer_level_B": few_B / jnp.maximum(n_B, 1),
      "weight_B": jnp.broadcast_to(self.weight_at(step), n_B.shape),
    }
    return noisy.replace(extra=extra)

  def counts(self, u_Bx2: Array, n_B: Array) -> tuple[Array, Array]:
    """Masked tokens of answers of n tokens, the student's and the teacher's, [B] each."""
    few, short = self.short
    share_B = 0.4 + 0.5 * u_Bx2[:, 0]
    nearer_B = jnp.clip(share_B * (0.3 + 0.4 * u_Bx2[:, 1]), 0.1, 0.6)
    share_B = jnp.where(n_B < short, jnp.minimum(share_B, 0.5), share_B)
    least_B = jnp.maximum(2, -(-n_B // 10))
    many_B = jnp.maximum(jnp.floor(n_B * share_B).astype(jnp.int32), least_B)
    few_B = jnp.minimum(jnp.floor(n_B * nearer_B).astype(jnp.int32), many_B)
    many_B, few_B = jnp.where(n_B <= few, 2, many_B), jnp.where(n_B <= few, 1, few_B)
    return jnp.minimum(many_B, n_B), jnp.minimum(few_B, n_B)

  def parts(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[Array, Array, Aux]:
    """Divergence and cross-entropy of each target, [B, L]."""
    (student, teacher), (own, frozen) = denoise, params
    head, aux = predict(student, own, noisy)
    finite = jnp.isfinite(head.hidden_BxAxD).all()
    head = head.replace(hidden_BxAxD=jnp.where(finite, head.hidden_BxAxD, 0))
    taught = self.teacher_head(teacher, frozen, noisy, head)
    hidden_BxL = noisy.weight_BxL > 0
    if self.seen == "text":
      hidden_BxL &= noisy.extra["nearer_BxL"] == self.mask_id
    kl_BxL = self.divergence(head, taught, hidden_BxL)
    if self.seen == "text":
      certain_BxL = cross_entropy(tempered(head, self.temperature), noisy, ())
      kl_BxL = jnp.where(hidden_BxL, kl_BxL, certain_BxL)
    kl_BxL = self.temperature**2 * kl_BxL
    ce_BxL = cross_entropy(head, noisy, self.forbidden)
    return jnp.where(finite, kl_BxL, 0), jnp.where(finite, ce_BxL, 0), aux

  @property
  def divergence(self) -> Divergence:
    return Divergence(softened=self.temperature)

  def teacher_head(
    self, teacher: Denoiser, params: Params, noisy: Noisy, student: LogitHead | None = None
  ) -> LogitHead:
    del student
    level_Bx1 = noisy.extra["nearer_level_B"][:, None]
    nearer = noisy.replace(
      inputs_BxW=noisy.extra["nearer_BxL"],
      time_BxW=jnp.broadcast_to(level_Bx1, noisy.time_BxW.shape),
    )
    return jax.lax.stop_gradient(predict(teacher, params, nearer)[0])

  def losses(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[Array, Array, Aux]:
    """Of each target [B, L], before means are held below `most`: the loss, the cross-entropy."""
    kl_BxL, ce_BxL, aux = self.parts(denoise, params, noisy)
    weight_Bx1 = noisy.extra["weight_B"][:, None]
    return weight_Bx1 * kl_BxL + (1 - weight_Bx1) * ce_BxL, ce_BxL, aux

  def loss(
    self, denoise: tuple[Denoiser, Denoiser], params: tuple[Params, Params], noisy: Noisy
  ) -> tuple[LossSum, Aux]:
    """Sums over the batch; "kl" besides."""
    kl_BxL, ce_BxL, aux = self.parts(denoise, params, noisy)
    tokens, weight = noisy.count_B.sum(), noisy.extra["weight_B"][0]
    kl, ce = (
      tokens * jnp.clip(x.sum() / jnp.maximum(tokens, 1), 0, self.most) for x in (kl_BxL, ce_BxL)
    )
    sums = loss_sum(noisy, kl_BxL, ce_BxL)
    metrics = sums.metrics | {"kl": kl_BxL.sum()}
    return sums.replace(total=weight * kl + (1 - weight) * ce, metrics=metrics), aux

  def not_a_likelihood(self) -> str | None:
    return "it is the distance from a teacher"
