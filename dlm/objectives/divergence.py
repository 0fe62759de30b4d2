"""How far a student's distribution of the next token lies from a teacher's. Never [B, L, V].

Kullback-Leibler over all ids takes `linear_distill`, a tile of ids at a time. What must sort or cut
distributions takes a few rows at a time: logits of `ROWS` rows exist at once, [ROWS, V] of student
and teacher and about as many more in the backward pass, which computes them again: 50 MB each at
49,152 ids. Rows that are not asked stand last and are passed over.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from dlm.objectives.cross_entropy import logits
from dlm.types import Array, LogitHead
from kernels_pallas.linear_distill import Spec, linear_distill
from kernels_pallas.shards import folded, unfolded

KINDS = ("kl", "jsd")
ROWS = 256


@struct.dataclass
class Kept:
  """What is kept of a teacher's distribution: its likeliest ids, as a divergence compares them."""

  id_BxLxK: Array
  logp_BxLxK: Array  # falling
  rest_BxL: Array  # log of what all other ids have together


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Kullback-Leibler, either way or mixed, or Jensen-Shannon; of all ids or the teacher's best.

  Of a teacher of whom K ids are `Kept`, all others count as one id, of the probability that they
  have together: that is the same if K is all, and else a lower bound, since merging ids can only
  bring distributions closer.

  Args:
    kind: "kl": (1 - reverse) KL(teacher || student) + reverse KL(student || teacher). "jsd":
      teacher_weight KL(teacher || m) + (1 - teacher_weight) KL(student || m), m their mean by the
      same weights.
    best: sums run over the teacher's so many likeliest ids alone, and what is left is not made to
      sum to 1 again, so it is no divergence any more; 0: over all.
    temperature, top_k, top_p, min_p: the teacher's distribution is shaped by them, in this order; 0
      or, for top_p, 1: off. top_p keeps the id that crosses it.
    softened: logits of both are divided by it first.
  """

  kind: str = "kl"
  reverse: float = 0.0
  teacher_weight: float = 0.5
  best: int = 0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  softened: float = 1.0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"Divergence: kind={self.kind!r} is not one of {', '.join(KINDS)}")
    for name in ("reverse", "teacher_weight", "top_p", "min_p"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"Divergence: {name}={getattr(self, name)} must lie in [0, 1]")
    for name in ("best", "top_k"):
      if getattr(self, name) < 0:
        raise ValueError(f"Divergence: {name}={getattr(self, name)} must not be negative (0: off)")
    for name in ("temperature", "softened"):
      if not getattr(self, name) > 0:
        raise ValueError(f"Divergence: {name}={getattr(self, name)} must be positive")
    if self.reverse and (self.top_k or self.top_p < 1 or self.min_p):
      raise ValueError(
        f"Divergence: reverse={self.reverse} is infinite where top_k, top_p or min_p leave the "
        "teacher without an id that the student may give"
      )

  def __call__(self, student: LogitHead, teacher: LogitHead | Kept, asked_BxL: Array) -> Array:
    """Nats, float32 [B, L], differentiable in the student; 0 where not asked."""
    if isinstance(teacher, Kept):
      kept = teacher.id_BxLxK, teacher.logp_BxLxK, teacher.rest_BxL
      return by_tiles(self.of_kept, (student,), asked_BxL, kept)
    if self.kind != "kl" or self.best or self.top_k or self.top_p < 1 or self.min_p:
      return by_tiles(self.of_logits, (student, teacher), asked_BxL)
    return kl(
      student,
      teacher,
      asked_BxL,
      reverse=self.reverse,
      temperature=self.softened,
      teacher_temperature=self.softened * self.temperature,
    )

  def of_logits(self, student_RxV: Array, teacher_RxV: Array) -> Array:
    """Nats by row, [R]."""
    q_RxK = jax.nn.log_softmax(student_RxV / self.softened)
    p_RxK = self._of_teacher(teacher_RxV)
    if self.best:
      p_RxK, id_RxK = jax.lax.top_k(p_RxK, min(self.best, p_RxK.shape[1]))
      q_RxK = jnp.take_along_axis(q_RxK, id_RxK, axis=1)
    return self._between(p_RxK, q_RxK)

  def of_kept(self, student_RxV: Array, id_RxK: Array, p_RxK: Array, rest_R: Array) -> Array:
    """Nats by row, [R], of what is kept of the teacher."""
    q_RxV = jax.nn.log_softmax(student_RxV / self.softened)
    q_RxK = jnp.take_along_axis(q_RxV, id_RxK, axis=1)
    if self.best:
      p_RxK, q_RxK = p_RxK[:, : self.best], q_RxK[:, : self.best]
    elif id_RxK.shape[1] < q_RxV.shape[1]:
      other_R = jax.nn.logsumexp(_without(q_RxV, id_RxK), axis=1)
      p_RxK = jnp.concatenate([p_RxK, rest_R[:, None]], axis=1)
      q_RxK = jnp.concatenate([q_RxK, other_R[:, None]], axis=1)
    return self._between(p_RxK, q_RxK)

  def keep(self, teacher: LogitHead, count: int) -> Kept:
    """The `count` likeliest ids of each asked position, `ROWS` rows at a time.

    Raises:
      ValueError: the divergence is of more ids than that.
    """
    if self.best > count:
      raise ValueError(f"Divergence: best={self.best} ids cannot be had of {count} that are kept")
    count = min(count, teacher.unembed_VxD.shape[0])

    def of_row(hidden_D: Array) -> tuple[Array, Array, Array]:
      p_1xV = self._of_teacher(logits(teacher.replace(hidden_BxAxD=hidden_D[None, None]))[0])
      logp_1xK, id_1xK = jax.lax.top_k(p_1xV, count)
      rest_1 = jax.nn.logsumexp(_without(p_1xV, id_1xK), axis=1)
      return id_1xK[0], logp_1xK[0], rest_1[0]

    shape = teacher.hidden_BxAxD.shape[:2]
    hidden_RxD = teacher.hidden_BxAxD.reshape(-1, teacher.hidden_BxAxD.shape[-1])
    found = jax.lax.map(of_row, hidden_RxD, batch_size=min(ROWS, len(hidden_RxD)))
    return Kept(*(x.reshape(*shape, *x.shape[1:]) for x in found))

  def _of_teacher(self, teacher_RxV: Array) -> Array:
    return jax.nn.log_softmax(self._shaped(teacher_RxV / self.softened))

  def _between(self, p_RxK: Array, q_RxK: Array) -> Array:
    """Of log-probabilities, the teacher's and the student's."""
    if self.kind == "jsd":
      a = self.teacher_weight
      mean_RxK = jnp.logaddexp(_log(a) + p_RxK, _log(1 - a) + q_RxK)
      return a * _mean_gap(p_RxK, mean_RxK) + (1 - a) * _mean_gap(q_RxK, mean_RxK)
    nats_R = (1 - self.reverse) * _mean_gap(p_RxK, q_RxK)
    return nats_R + self.reverse * _mean_gap(q_RxK, p_RxK) if self.reverse else nats_R

  def _shaped(self, z_RxV: Array) -> Array:
    z_RxV = z_RxV / self.temperature
    if self.top_k:
      least_Rx1 = jax.lax.top_k(z_RxV, min(self.top_k, z_RxV.shape[1]))[0][:, -1:]
      z_RxV = jnp.where(z_RxV >= least_Rx1, z_RxV, -jnp.inf)
    if self.top_p < 1:
      sorted_RxV = jnp.sort(z_RxV, axis=1, descending=True)
      p_RxV = jax.nn.softmax(sorted_RxV)
      kept_RxV = jnp.cumsum(p_RxV, axis=1) - p_RxV <= self.top_p
      least_Rx1 = jnp.where(kept_RxV, sorted_RxV, jnp.inf).min(axis=1, keepdims=True)
      z_RxV = jnp.where(z_RxV >= least_Rx1, z_RxV, -jnp.inf)
    if self.min_p:
      least_Rx1 = z_RxV.max(axis=1, keepdims=True) + _log(self.min_p)
      z_RxV = jnp.where(z_RxV >= least_Rx1, z_RxV, -jnp.inf)
    return z_RxV


def kl(
  student: LogitHead,
  teacher: LogitHead,
  asked_BxL: Array,
  *,
  reverse: float = 0.0,
  temperature: float = 1.0,
  teacher_temperature: float = 1.0,
  forbidden: tuple[int, ...] = (),
) -> Array:
  """Nats, float32 [B, L], see `linear_distill`; 0 where not asked."""

  def rows(head: LogitHead) -> tuple[Array, Array]:
    return folded(head.hidden_BxAxD), head.unembed_VxD

  spec = Spec(
    reverse, temperature, teacher_temperature, student.soft_cap, teacher.soft_cap, forbidden
  )
  nats_R = linear_distill(
    *rows(student), *rows(teacher), spec, implementation=student.implementation
  )
  return jnp.where(asked_BxL, unfolded(nats_R, asked_BxL.shape), 0)


def by_tiles(
  of_logits: Callable[..., Array],
  heads: tuple[LogitHead, ...],
  asked_BxL: Array,
  beside: tuple[Array, ...] = (),
) -> Array:
  """Of whole distributions a number each, float32 [B, L], `ROWS` at a time; 0 where not asked.

  Args:
    of_logits: of the logits of each head, [R, V], and of `beside`, [R, ...], gives [R].
    beside: arrays [B, L, ...], without gradient.
  """
  shape, count = asked_BxL.shape, asked_BxL.size
  size = min(ROWS, count)
  # Asked rows first, and the last tile filled up with rows that are not asked.
  order_R = jnp.argsort(~asked_BxL.ravel(), stable=True)
  row_TxR = jnp.pad(order_R, (0, -count % size), constant_values=count).reshape(-1, size)

  def of_rows(row_R: Array) -> Array:
    def at(head: LogitHead) -> Array:
      hidden_NxD = head.hidden_BxAxD.reshape(count, -1)
      hidden_RxD = hidden_NxD.at[row_R].get(mode="fill", fill_value=0)
      return logits(head.replace(hidden_BxAxD=hidden_RxD[None]))[0]

    fixed = (x.reshape(count, *x.shape[2:]) for x in beside)
    return of_logits(*map(at, heads), *(x.at[row_R].get(mode="fill", fill_value=0) for x in fixed))

  def tile(_: None, row_R: Array) -> tuple[None, Array]:
    asked_R = asked_BxL.ravel().at[row_R].get(mode="fill", fill_value=False)
    nothing_R = jnp.zeros(size, jnp.float32)
    nats_R = jax.lax.cond(asked_R.any(), jax.checkpoint(of_rows), lambda _: nothing_R, row_R)
    return None, jnp.where(asked_R, nats_R, 0)

  _, nats_TxR = jax.lax.scan(tile, None, row_TxR)
  nats_R = jnp.zeros(count, jnp.float32).at[row_TxR.ravel()].set(nats_TxR.ravel(), mode="drop")
  return nats_R.reshape(shape)


def _without(logp_RxV: Array, id_RxK: Array) -> Array:
  return logp_RxV.at[jnp.arange(len(logp_RxV))[:, None], id_RxK].set(-jnp.inf)


def _log(x: float) -> Array:
  return jnp.log(jnp.float32(x))


def _mean_gap(p_RxK: Array, q_RxK: Array) -> Array:
  """Of log-probabilities: sum of exp(p) (p - q), where an id that p excludes adds nothing."""
  live_RxK = p_RxK > -jnp.inf
  p_RxK = jnp.where(live_RxK, p_RxK, 0)
  gap_RxK = p_RxK - jnp.where(live_RxK, q_RxK, 0)
  return jnp.where(live_RxK, jnp.exp(p_RxK) * gap_RxK, 0).sum(axis=1)


def likeliest(head: LogitHead) -> Array:
  """The id of the largest logit, int32 [B, A], `ROWS` rows at a time."""
  shape = head.hidden_BxAxD.shape[:2]
  hidden_RxD = head.hidden_BxAxD.reshape(-1, head.hidden_BxAxD.shape[-1])

  def of_row(hidden_D: Array) -> Array:
    return jnp.argmax(logits(head.replace(hidden_BxAxD=hidden_D[None, None]))[0, 0])

  found_R = jax.lax.map(of_row, hidden_RxD, batch_size=min(ROWS, hidden_RxD.shape[0]))
  return found_R.reshape(shape).astype(jnp.int32)
