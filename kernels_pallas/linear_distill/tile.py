"""What is gathered from a tile of both vocabularies' logits, and how two such states merge.

KL(p || q) is the mean under p of the difference of logits, less the difference of logsumexps; means
and logsumexps of two parts make those of both. For XLA and for kernels, as `token_stats.tile` is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import mass as masses
from kernels_pallas.linear_distill.spec import Spec
from kernels_pallas.mass import Mass

Array = jax.Array


class Side(NamedTuple):
  """Of the student or the teacher."""

  mass: Mass
  # The sum of exp(logit - finite(best)) times its gap, the logit less the other side's; None: not
  # asked.
  gap_Rx1: Array | None

  def mean_gap(self) -> Array | None:
    return None if self.gap_Rx1 is None else self.gap_Rx1 / self.mass.sum_Rx1


class State(NamedTuple):
  """Of the ids so far, [R, 1] each."""

  student: Side
  teacher: Side


class Sums(NamedTuple):
  """What gradients need of all ids, [R] each, or broadcast to a tile."""

  student_lse: Array
  teacher_lse: Array
  student_gap: Array | None  # its mean under the student; None: not needed


def empty(lowest_Rx1: Array, spec: Spec) -> State:
  """Before the first tile; `lowest` is -inf."""
  nothing = masses.empty(lowest_Rx1)

  def side(asked: bool) -> Side:
    return Side(nothing, nothing.sum_Rx1 if asked else None)

  return State(side(spec.reverse > 0), side(spec.reverse < 1))


def of_tile(student_RxT: Array, teacher_RxT: Array, live_1xT: Array, spec: Spec) -> State:
  """The state of one tile alone, of divided logits; where not live they may be anything."""

  def side(z_RxT: Array, other_RxT: Array, asked: bool) -> Side:
    live_RxT = jnp.where(live_1xT, z_RxT, -jnp.inf)
    top1_Rx1 = live_RxT.max(1, keepdims=True)
    weight_RxT = jnp.exp(live_RxT - masses.finite(top1_Rx1))
    mass = Mass(top1_Rx1, weight_RxT.sum(1, keepdims=True))
    if not asked:
      return Side(mass, None)
    gap_RxT = jnp.where(live_1xT, weight_RxT * (z_RxT - other_RxT), 0)
    return Side(mass, gap_RxT.sum(1, keepdims=True))

  return State(
    side(student_RxT, teacher_RxT, spec.reverse > 0),
    side(teacher_RxT, student_RxT, spec.reverse < 1),
  )


def merge(old: State, new: State) -> State:
  def side(old: Side, new: Side) -> Side:
    mass, scales = masses.merged(old.mass, new.mass)
    if old.gap_Rx1 is None:
      return Side(mass, None)
    old_gap_Rx1, new_gap_Rx1 = old.gap_Rx1, new.gap_Rx1
    gap_Rx1 = scales[0].factor_Rx1 * old_gap_Rx1 + scales[1].factor_Rx1 * new_gap_Rx1
    return Side(mass, gap_Rx1)

  return State(side(old.student, new.student), side(old.teacher, new.teacher))


def result(state: State, spec: Spec) -> tuple[Array, Sums]:
  """Nats by row, and what their gradients need, of the state of all ids."""
  means = Sums(state.student.mass.lse(), state.teacher.mass.lse(), state.student.mean_gap())
  more_Rx1 = means.teacher_lse - means.student_lse
  nats_Rx1 = jnp.zeros_like(more_Rx1)
  if spec.reverse < 1:
    nats_Rx1 += (1 - spec.reverse) * (state.teacher.mean_gap() - more_Rx1)
  if spec.reverse:
    nats_Rx1 += spec.reverse * (means.student_gap + more_Rx1)
  return jax.tree.map(lambda x_Rx1: x_Rx1[:, 0], (nats_Rx1, means))


def gradient(
  student: Array, teacher: Array, live: Array, sums: Sums, grad: Array, spec: Spec
) -> Array:
  """Of the student's products hidden @ unembed.T, [R, T]; all else broadcasts to the logits.

  0 where not live and where `grad`, that of the nats, is 0, whatever stands there.
  """
  q = jnp.exp(student - sums.student_lse)
  d_z = 0.0
  if spec.reverse < 1:
    d_z += (1 - spec.reverse) * (q - jnp.exp(teacher - sums.teacher_lse))
  if spec.reverse:
    d_z += spec.reverse * q * (student - teacher - sums.student_gap)
  return jnp.where(live & (grad != 0), d_z * (grad * spec.slope(student)), 0)
