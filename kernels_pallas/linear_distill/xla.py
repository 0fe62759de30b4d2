"""The divergence and its gradient over tiles of both vocabularies: no [R, V] array exists.

KL(p || q) is the mean under p of the difference of logits, less the difference of logsumexps; means
and logsumexps of two parts make those of both. The backward pass computes logits again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import shards, vocabulary
from kernels_pallas.linear_distill.spec import Spec
from kernels_pallas.vocabulary import Held

Array = jax.Array
_SPLIT = ("r", "t", "r", "t")


class Sums(NamedTuple):
  """Of some ids, [R] each: logsumexps, and mean differences of logits, own minus the other's."""

  student_lse_R: Array
  teacher_lse_R: Array
  student_gap_R: Array  # mean under the student
  teacher_gap_R: Array  # mean under the teacher


def linear_distill(
  hidden_RxD: Array,
  unembed_VxD: Array,
  teacher_hidden_RxE: Array,
  teacher_unembed_VxE: Array,
  spec: Spec,
  tile: int | None = None,
) -> Array:
  """See `kernels_pallas.linear_distill.linear_distill`. `tile`: ids, None: `tile_size`."""
  operands = hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE
  return _divergence(spec, tile, *operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divergence(spec: Spec, tile: int | None, *operands: Array) -> Array:
  return _forward(spec, tile, *operands)[0]


def _forward(spec: Spec, tile: int | None, *operands: Array) -> tuple[Array, tuple]:
  vocab = operands[1].shape[0]

  def part(*own: Array) -> Sums:
    held = vocabulary.held(own[1], vocab)
    return vocabulary.of_all(_merge, _sums(spec, tile, held, *own), held)

  sums = shards.run(part, _SPLIT, Sums(*"rrrr"), *operands)
  more_R = sums.teacher_lse_R - sums.student_lse_R
  nats_R = (1 - spec.reverse) * (sums.teacher_gap_R - more_R)
  if spec.reverse:
    nats_R += spec.reverse * (sums.student_gap_R + more_R)
  return nats_R, (operands, sums)


def _backward(spec: Spec, tile: int | None, saved: tuple, grad_R: Array) -> tuple:
  (hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE), sums = saved
  vocab, dtypes = unembed_VxD.shape[0], (hidden_RxD.dtype, unembed_VxD.dtype)
  split = shards.axes()
  # Devices that hold shares of the same gradient.
  others = (split.tensor,) if split.tensor else (), split.rows

  def part(*own: Array) -> list[Array]:
    """Hidden's gradient is a sum over all ids, the unembedding's over all rows."""
    held = vocabulary.held(own[1], vocab)
    shares = _gradients(spec, tile, held, jnp.float32 if split.rows else dtypes[1], *own)
    return [
      (jax.lax.psum(share, axes) if axes else share).astype(dtype)
      for share, axes, dtype in zip(shares, others, dtypes, strict=True)
    ]

  # A row of weight 0 may hold anything, NaN too, and 0 * NaN would spread to every gradient.
  used_Rx1 = (grad_R != 0)[:, None]
  hidden_RxD = jnp.where(used_Rx1, hidden_RxD, 0)
  operands = hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE, sums, grad_R
  split_in = (*_SPLIT, Sums(*"rrrr"), "r")
  return *shards.run(part, split_in, ["r", "t"], *operands), None, None


_divergence.defvjp(_forward, _backward)


def _tiles(step, state, spec: Spec, tile: int | None, held: Held, *operands: Array):
  """Folds `step(state, tile, student's logits, teacher's)` over the ids at hand."""
  hidden_RxD, unembed_VxD, teacher_hidden_RxE, teacher_unembed_VxE = operands
  tile = vocabulary.tile_size(hidden_RxD, unembed_VxD, tile)

  def at(state, part: vocabulary.Tile):
    teacher_TxE = jax.lax.dynamic_slice_in_dim(teacher_unembed_VxE, part.start, tile)
    student_RxT = spec.student(hidden_RxD, part.unembed_TxD)
    return step(state, part, student_RxT, spec.teacher(teacher_hidden_RxE, teacher_TxE))

  return vocabulary.sweep(
    at, state, unembed_VxD, tile=tile, forbidden=spec.forbidden, first=held.first
  )


def _sums(spec: Spec, tile: int | None, held: Held, *operands: Array) -> Sums:
  def add(state: Sums, part: vocabulary.Tile, student_RxT: Array, teacher_RxT: Array) -> Sums:
    live_1xT = part.live_T[None, :]

    def of(z_RxT: Array, gap_RxT: Array) -> tuple[Array, Array]:
      lse_R = jax.nn.logsumexp(jnp.where(live_1xT, z_RxT, -jnp.inf), axis=1)
      mean_R = jnp.where(live_1xT, jnp.exp(z_RxT - lse_R[:, None]) * gap_RxT, 0).sum(axis=1)
      return lse_R, mean_R

    student_lse_R, student_gap_R = of(student_RxT, student_RxT - teacher_RxT)
    teacher_lse_R, teacher_gap_R = of(teacher_RxT, teacher_RxT - student_RxT)
    return _merge(state, Sums(student_lse_R, teacher_lse_R, student_gap_R, teacher_gap_R))

  nothing_R = jnp.zeros_like(operands[0][:, 0], dtype=jnp.float32)
  nothing = Sums(nothing_R - jnp.inf, nothing_R - jnp.inf, nothing_R, nothing_R)
  return _tiles(add, nothing, spec, tile, held, *operands)


def _merge(old: Sums, new: Sums) -> Sums:
  def of(lse_R: Array, gap_R: Array, other_lse_R: Array, other_gap_R: Array):
    both_R = jnp.logaddexp(lse_R, other_lse_R)

    def share(part_R: Array) -> Array:  # 0 of ids that are all forbidden
      return jnp.where(part_R == -jnp.inf, 0, jnp.exp(part_R - both_R))

    return both_R, share(lse_R) * gap_R + share(other_lse_R) * other_gap_R

  student = of(old.student_lse_R, old.student_gap_R, new.student_lse_R, new.student_gap_R)
  teacher = of(old.teacher_lse_R, old.teacher_gap_R, new.teacher_lse_R, new.teacher_gap_R)
  return Sums(student[0], teacher[0], student[1], teacher[1])


def _gradients(
  spec: Spec, tile: int | None, held: Held, unembed_dtype, *operands_sums_grad
) -> tuple[Array, Array]:
  """This device's share, hidden's in float32."""
  *operands, sums, grad_R = operands_sums_grad
  hidden_RxD, unembed_VxD = operands[:2]
  used_Rx1 = (grad_R != 0)[:, None]

  def add(
    state: tuple[Array, Array], part: vocabulary.Tile, student_RxT: Array, teacher_RxT: Array
  ) -> tuple[Array, Array]:
    q_RxT = jnp.exp(student_RxT - sums.student_lse_R[:, None])
    d_z_RxT = (1 - spec.reverse) * (q_RxT - jnp.exp(teacher_RxT - sums.teacher_lse_R[:, None]))
    if spec.reverse:
      gap_RxT = student_RxT - teacher_RxT - sums.student_gap_R[:, None]
      d_z_RxT += spec.reverse * q_RxT * gap_RxT
    d_z_RxT *= grad_R[:, None] * spec.slope(student_RxT)
    d_z_RxT = jnp.where(used_Rx1 & part.live_T[None, :], d_z_RxT, 0)
    return vocabulary.add_gradients(state, d_z_RxT, part, hidden_RxD)

  nothing = vocabulary.no_gradients(hidden_RxD, unembed_VxD, unembed_dtype)
  return _tiles(add, nothing, spec, tile, held, *operands)
